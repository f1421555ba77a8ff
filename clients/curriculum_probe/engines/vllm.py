"""vLLM in this process: continuous batching, and a prompt's attempts share its prefix.

Written for the V1 engine's documented interface and read against vLLM 0.32.
"""

from __future__ import annotations

import itertools
import logging
from pathlib import Path
from typing import Any

from vllm import AsyncEngineArgs, SamplingParams
from vllm.sampling_params import RequestOutputKind
from vllm.v1.engine.async_llm import AsyncLLM

from curriculum_probe.engines import (
    CheckpointError,
    Completion,
    EngineConfig,
    EngineError,
    RefusedError,
)
from curriculum_probe.engines.checkpoints import Checkpoint, whole_checkpoint
from curriculum_probe.patience import Patience
from curriculum_probe.threads import in_thread

logger = logging.getLogger(__name__)


class VllmEngine:
    """Samples with `AsyncLLM`. Options are those of `AsyncEngineArgs`."""

    loads_weights = True

    def __init__(self, config: EngineConfig, _patience: Patience) -> None:
        self._config = config
        self._model = config.model
        self._checkpoint = _known(config.model)
        self._numbers = itertools.count()
        self._llm = self._start(self._model)
        self._sampling = {
            "max_tokens": config.max_tokens,
            "temperature": config.temperature,
            "top_p": config.top_p,
            "stop": list(config.stop),
            "output_kind": RequestOutputKind.FINAL_ONLY,
        }

    @property
    def slots(self) -> int:
        return self._config.concurrency

    async def sample(self, prompt: str, attempt_count: int) -> list[Completion]:
        params = SamplingParams(n=attempt_count, **self._sampling)
        final: Any = None
        try:
            name = f"probe-{next(self._numbers)}"
            async for output in self._llm.generate(self._asked(prompt), params, name):
                final = output
        except Exception as error:  # the boundary: its errors are of many kinds
            if self._llm.errored:
                raise EngineError(f"vllm: {_line(error)}") from error
            raise RefusedError(f"vllm: {_line(error)}") from error
        return [Completion(output.text, len(output.token_ids)) for output in final.outputs]

    async def load(self, uri: str) -> None:
        checkpoint = await in_thread(lambda: whole_checkpoint(uri))
        if self._checkpoint is not None:
            checkpoint.check_like(self._checkpoint)  # vLLM only warns of what is not there
        try:
            await self._reload(checkpoint.folder)
        except Exception as error:  # the boundary, see _restart
            logger.warning("engine restarted because=reload_weights: %s", _line(error))
            await in_thread(lambda: self._restart(checkpoint.folder))
        self._model, self._checkpoint = str(checkpoint.folder), checkpoint

    async def close(self) -> None:
        self._llm.shutdown()

    def _start(self, model: str) -> Any:
        given = {"enable_prefix_caching": True, "max_num_seqs": self._config.concurrency}
        arguments = {**given, **self._config.options, "model": model}
        # The name under which weights are found changes, the tokenizer does not.
        arguments.setdefault("tokenizer", self._config.model)
        try:
            return AsyncLLM.from_engine_args(AsyncEngineArgs(**arguments))
        except Exception as error:  # the boundary: its errors are of many kinds
            raise EngineError(f"model={model!r}: {_line(error)}") from error

    def _asked(self, prompt: str) -> Any:
        if not self._config.chat:
            return prompt
        messages = [{"role": "user", "content": prompt}]
        tokenizer = self._llm.get_tokenizer()
        token_ids = tokenizer.apply_chat_template(
            messages, tokenize=True, add_generation_prompt=True, return_dict=False
        )
        return {"prompt_token_ids": token_ids}

    async def _reload(self, folder: Path) -> None:
        """In place; what was computed from the old weights is forgotten."""
        await self._llm.collective_rpc("reload_weights", kwargs={"weights_path": str(folder)})
        if not await self._llm.reset_prefix_cache():
            raise RuntimeError("the prefix cache is still in use")

    def _restart(self, folder: Path) -> None:
        """A reload that failed may have left some of the weights: only a new engine is sure."""
        self._llm.shutdown()
        try:
            self._llm = self._start(str(folder))
        except EngineError as error:
            self._llm = self._start(self._model)
            raise CheckpointError(str(error)) from error


create = VllmEngine


def _known(model: str) -> Checkpoint | None:
    """None for one that is not a folder here with safetensors."""
    try:
        return whole_checkpoint(str(Path(model).resolve()))
    except CheckpointError:
        return None


def _line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
