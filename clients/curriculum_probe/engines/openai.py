"""Any server that speaks OpenAI's `/v1/completions`: vLLM, SGLang, TGI and others."""

from __future__ import annotations

import contextlib
import http.client
import json
import logging
import urllib.error
import urllib.request
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import urlsplit

from curriculum_api.errors import InvalidRequestError
from curriculum_probe.engines import Completion, EngineConfig, EngineError
from curriculum_probe.patience import Patience

REQUEST_TIMEOUT_S = 600.0
"""A full group of long completions on a busy server takes minutes."""
_REFUSING = frozenset({400, 413, 422})
"""Statuses that may be one prompt's fault, for example its length."""
_UNREACHABLE = (OSError, http.client.HTTPException)
_MAX_ERROR_BYTES = 65_536
_MAX_SHOWN = 300

logger = logging.getLogger(__name__)


class _AwayError(EngineError):
    """The endpoint is unreachable or busy; the same request may be repeated."""


class _RefusedError(EngineError):
    """The endpoint refuses this request."""


class OpenAIEngine:
    """Samples at one endpoint, a bounded number of requests at a time."""

    def __init__(self, config: EngineConfig, patience: Patience) -> None:
        parts = urlsplit(config.endpoint)
        if parts.scheme not in ("http", "https") or not parts.netloc:
            raise InvalidRequestError(
                f"endpoint={config.endpoint!r}: must be a URL such as http://localhost:8000/v1"
            )
        self._config = config
        self._patience = patience
        self._url = config.endpoint.rstrip("/") + "/completions"
        self._headers = {"Content-Type": "application/json"}
        if config.api_key:
            self._headers["Authorization"] = f"Bearer {config.api_key}"
        self._has_answered = False

    def generate(
        self, prompts: Sequence[str], attempt_counts: Sequence[int]
    ) -> list[list[Completion]]:
        with ThreadPoolExecutor(self._config.concurrency) as pool:
            answers = list(pool.map(self._sample, prompts, attempt_counts))
        refusals = [answer for answer in answers if isinstance(answer, _RefusedError)]
        self._has_answered |= len(refusals) < len(answers)
        if refusals and not self._has_answered:
            raise refusals[0]  # not the prompts' fault, it seems
        if refusals:
            logger.warning("prompts refused count=%d because=%s", len(refusals), refusals[0])
        return [[] if isinstance(answer, _RefusedError) else answer for answer in answers]

    def _sample(self, prompt: str, attempt_count: int) -> list[Completion] | _RefusedError:
        completions: list[Completion] = []
        try:
            # More than once, because some servers bound n or give one choice whatever it is.
            while len(completions) < attempt_count:
                completions += self._ask(prompt, attempt_count - len(completions))
        except _RefusedError as refusal:
            return refusal
        return completions

    def _ask(self, prompt: str, attempt_count: int) -> list[Completion]:
        body = {
            "model": self._config.model,
            "prompt": prompt,
            "n": attempt_count,
            "max_tokens": self._config.max_tokens,
            "temperature": self._config.temperature,
        }
        content = json.dumps(body).encode()
        answer = self._patience.repeat(lambda: self._post(content), (_AwayError,), "endpoint")
        try:
            texts = [str(choice["text"]) for choice in answer["choices"]]
            total = (answer.get("usage") or {}).get("completion_tokens")
        except (AttributeError, KeyError, TypeError):
            texts = []
        if not texts:
            raise EngineError(f"{self._url}: answered without completions")
        return [*map(Completion, texts, _shares(total, len(texts)))][:attempt_count]

    def _post(self, content: bytes) -> Any:
        request = urllib.request.Request(self._url, content, self._headers)
        try:
            with urllib.request.urlopen(request, timeout=REQUEST_TIMEOUT_S) as response:
                return json.loads(response.read())
        except urllib.error.HTTPError as error:
            failure = self._failure(error)
        except _UNREACHABLE as error:
            reason = getattr(error, "reason", None) or error
            failure = _AwayError(f"{self._url}: {str(reason) or type(reason).__name__}")
        except ValueError:
            failure = EngineError(f"{self._url}: answered with something else than JSON")
        raise failure

    def _failure(self, error: urllib.error.HTTPError) -> EngineError:
        kind = EngineError
        if error.code == 429 or error.code >= 500:
            kind = _AwayError
        elif error.code in _REFUSING:
            kind = _RefusedError
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
