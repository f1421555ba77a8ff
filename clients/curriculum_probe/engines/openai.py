"""Any server that speaks OpenAI's `/v1/completions`: vLLM, SGLang, TGI and others.

With `chat` it is asked at `/v1/chat/completions`. This engine cannot change its weights; whoever
owns it does.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import urllib.error
import urllib.request
from functools import partial
from typing import Any
from urllib.parse import urlsplit

from curriculum_api.errors import InvalidRequestError
from curriculum_probe.engines import Completion, EngineConfig, EngineError, RefusedError
from curriculum_probe.patience import Patience
from curriculum_probe.threads import in_thread

REQUEST_TIMEOUT_S = 600.0
"""A full group of long completions on a busy server takes minutes."""
_REFUSING = frozenset({400, 413, 422})
"""Statuses that may be one prompt's fault, for example its length."""
_UNREACHABLE = (OSError, http.client.HTTPException)
_MAX_ERROR_BYTES = 65_536
_MAX_SHOWN = 300


class _AwayError(EngineError):
    """The endpoint is unreachable or busy; the same request may be repeated."""


class OpenAIEngine:
    """Samples at one endpoint, which takes as many requests at once as it is given."""

    loads_weights = False

    def __init__(self, config: EngineConfig, patience: Patience) -> None:
        parts = urlsplit(config.endpoint)
        if parts.scheme not in ("http", "https") or not parts.netloc:
            raise InvalidRequestError(
                f"endpoint={config.endpoint!r}: must be a URL such as http://localhost:8000/v1"
            )
        self._config = config
        self._patience = patience
        path = "/chat/completions" if config.chat else "/completions"
        self._url = config.endpoint.rstrip("/") + path
        self._headers = {"Content-Type": "application/json"}
        if config.api_key:
            self._headers["Authorization"] = f"Bearer {config.api_key}"

    @property
    def slots(self) -> int:
        return self._config.concurrency

    async def sample(self, prompt: str, attempt_count: int) -> list[Completion]:
        completions: list[Completion] = []
        # More than once, because some servers bound n or give one choice whatever it is.
        while len(completions) < attempt_count:
            body = self._body(prompt, attempt_count - len(completions))
            completions += await in_thread(partial(self._ask, body))
        return completions[:attempt_count]

    async def load(self, uri: str) -> None:
        raise EngineError(f"{self._url}: its weights cannot be changed from here")

    async def close(self) -> None:
        """Nothing is held."""

    def _body(self, prompt: str, attempt_count: int) -> dict[str, Any]:
        config = self._config
        asked = {"messages": [{"role": "user", "content": prompt}]} if config.chat else {}
        body: dict[str, Any] = {
            "model": config.model,
            **(asked or {"prompt": prompt}),
            "n": attempt_count,
            "max_tokens": config.max_tokens,
            "temperature": config.temperature,
        }
        if config.top_p < 1:
            body["top_p"] = config.top_p
        if config.stop:
            body["stop"] = list(config.stop)
        return body

    def _ask(self, body: dict[str, Any]) -> list[Completion]:
        content = json.dumps(body).encode()
        answer = self._patience.repeat(lambda: self._post(content), (_AwayError,), "endpoint")
        try:
            texts = [self._text(choice) for choice in answer["choices"]]
            total = (answer.get("usage") or {}).get("completion_tokens")
        except (AttributeError, KeyError, TypeError):
            texts = []
        if not texts:
            raise EngineError(f"{self._url}: answered without completions")
        return [*map(Completion, texts, _shares(total, len(texts)))]

    def _text(self, choice: Any) -> str:
        return str(choice["message"]["content"] or "" if self._config.chat else choice["text"])

    def _post(self, content: bytes) -> Any:
        request = urllib.request.Request(self._url, content, self._headers)
        try:
            with urllib.request.urlopen(request, timeout=REQUEST_TIMEOUT_S) as response:
                return json.loads(response.read())
        except urllib.error.HTTPError as error:
            failure: Exception = self._failure(error)
        except _UNREACHABLE as error:
            reason = getattr(error, "reason", None) or error
            failure = _AwayError(f"{self._url}: {str(reason) or type(reason).__name__}")
        except ValueError:
            failure = EngineError(f"{self._url}: answered with something else than JSON")
        raise failure

    def _failure(self, error: urllib.error.HTTPError) -> Exception:
        kind: type[Exception] = EngineError
        if error.code == 429 or error.code >= 500:
            kind = _AwayError
        elif error.code in _REFUSING:
            kind = RefusedError
        with error, contextlib.suppress(*_UNREACHABLE):
            return kind(f"{self._url}: {error.code}: {_message(error.read(_MAX_ERROR_BYTES))}")
        return kind(f"{self._url}: {error.code}")


create = OpenAIEngine


def _shares(total: object, count: int) -> list[int | None]:
    """Usage is told for all choices together; the ledger adds it up again."""
    if not isinstance(total, int):
        return [None] * count
    return [total // count + (position < total % count) for position in range(count)]


def _message(body: bytes) -> str:
    """The endpoint's own words, wherever its kind of server puts them."""
    text = body.decode(errors="replace")
    try:
        found = json.loads(text)
        for key in ("error", "message", "detail"):
            found = found.get(key, found) if isinstance(found, dict) else found
        text = found if isinstance(found, str) else text
    except ValueError:
        pass
    return " ".join(text.split())[:_MAX_SHOWN] or "no explanation"
