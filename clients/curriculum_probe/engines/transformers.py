"""Hugging Face's models in this process, on a GPU or a CPU."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers

from curriculum_probe.engines import (
    CheckpointError,
    Completion,
    EngineConfig,
    EngineError,
    RefusedError,
)
from curriculum_probe.engines.batcher import Batcher
from curriculum_probe.engines.checkpoints import whole_checkpoint
from curriculum_probe.patience import Patience
from curriculum_probe.threads import in_thread

# Its types say less than what is true of them.
_AutoModel: Any = transformers.AutoModelForCausalLM
_AutoTokenizer: Any = transformers.AutoTokenizer
_GenerationConfig: Any = transformers.GenerationConfig
_DynamicCache: Any = transformers.cache_utils.DynamicCache
_DynamicLayer: Any = transformers.cache_utils.DynamicLayer
_logging: Any = transformers.utils.logging
_logging.disable_progress_bar()

logger = logging.getLogger(__name__)

EMBEDDED_TOKENS = 8192
"""In a batch that is embedded, padding included, until memory says otherwise."""


class TransformersEngine:
    """Generates a batch at a time and has the next one ready, as token ids.

    Options: `device` ("cuda", "cuda:1", "cpu") and `dtype` ("bfloat16"); anything else goes to
    `from_pretrained`.
    """

    loads_weights = True

    def __init__(self, config: EngineConfig, _patience: Patience) -> None:
        self._config = config
        options = dict(config.options)
        device = str(options.pop("device", "cuda" if torch.cuda.is_available() else "cpu"))
        dtype = str(options.pop("dtype", "float32" if device == "cpu" else "bfloat16"))
        try:
            self._tokenizer = _AutoTokenizer.from_pretrained(config.model)
            model = _AutoModel.from_pretrained(config.model, dtype=getattr(torch, dtype), **options)
            self._model = (model if "device_map" in options else model.to(device)).eval()
        except (OSError, ValueError, AttributeError, RuntimeError, KeyError) as error:
            raise EngineError(f"model={config.model!r}: {error}") from error
        if config.chat and not self._tokenizer.chat_template:
            raise EngineError(f"model={config.model!r}: has no chat template, and chat wants one")
        # The model's own settings, such as a repetition penalty, are not the trainer's.
        self._end_ids = _ids(self._model.generation_config.eos_token_id)
        self._end_ids |= _ids(self._tokenizer.eos_token_id)
        pad_id: int | None = self._tokenizer.pad_token_id
        self._pad_id = min(self._end_ids, default=0) if pad_id is None else pad_id
        self._model.generation_config = self._generation_config()
        self._shares_prompts, self._is_closing = True, False
        self._embedded_tokens = EMBEDDED_TOKENS
        # One thread: a tokenizer that two threads use at once says that it is borrowed.
        self._tokenizing = ThreadPoolExecutor(1, "tokenizer")
        self._batcher = Batcher(
            self._generate,
            row_count=config.concurrency,
            new_token_count=config.max_tokens,
            out_of_memory=torch.OutOfMemoryError,
            on_halved=self._note_halved,
        )

    @property
    def slots(self) -> int:
        """The batch at hand, and two of which the next one is made: the more prompts there are, the
        nearer in length are those of a batch."""
        return 3 * self._config.concurrency

    async def sample(self, prompt: str, attempt_count: int) -> list[Completion]:
        loop = asyncio.get_running_loop()
        encode = partial(self._encode, prompt, self._config.max_tokens)
        token_ids = await loop.run_in_executor(self._tokenizing, encode)
        return await self._batcher.sample(token_ids, attempt_count)

    async def embed(self, prompts: Sequence[str]) -> list[list[float] | RefusedError]:
        """The mean over the prompt's tokens of what the last layer says of each."""
        loop = asyncio.get_running_loop()
        encoded = await loop.run_in_executor(self._tokenizing, self._encode_all, prompts)
        found: dict[int, list[float] | RefusedError] = {}
        rows: dict[int, list[int]] = {}
        for row, each in enumerate(encoded):
            if isinstance(each, RefusedError):
                found[row] = each
            else:
                rows[row] = each
        while rows:
            batch = self._longest(rows)
            some = await self._pooled_or_refused([rows[row] for row in batch])
            for row, result in zip(batch, some, strict=False):
                found[row] = result
                del rows[row]
        return [found[row] for row in range(len(prompts))]

    async def load(self, uri: str) -> None:
        checkpoint = await in_thread(lambda: whole_checkpoint(uri))
        weights = await in_thread(lambda: self._read(checkpoint.folder))
        await self._batcher.between(lambda: self._model.load_state_dict(weights))

    async def close(self) -> None:
        self._is_closing = True
        self._tokenizing.shutdown(wait=False, cancel_futures=True)
        await in_thread(self._batcher.close)

    def _generation_config(self) -> Any:
        config = self._config
        sampling: dict[str, Any] = {"do_sample": False}
        if config.temperature > 0:
            sampling = {"do_sample": True, "temperature": config.temperature}
            sampling |= {"top_p": config.top_p, "top_k": 0}
        return _GenerationConfig(
            max_new_tokens=config.max_tokens,
            eos_token_id=sorted(self._end_ids) or None,
            pad_token_id=self._pad_id,
            stop_strings=list(config.stop) or None,
            **sampling,
        )

    def _longest(self, rows: dict[int, list[int]]) -> list[int]:
        """Of these the longest, as many as a batch takes."""
        order = sorted(rows, key=lambda row: -len(rows[row]))
        count = max(1, self._embedded_tokens // len(rows[order[0]]))
        return order[: min(count, self._config.concurrency)]

    async def _pooled_or_refused(
        self, prompts: list[list[int]]
    ) -> Sequence[list[float] | RefusedError]:
        """Nothing where a smaller batch may do."""
        try:
            return await self._batcher.between(partial(self._pooled, prompts))
        except torch.OutOfMemoryError as error:
            width = len(prompts[0])
            if len(prompts) == 1:
                return [RefusedError(f"a prompt of {width} tokens: {error}")]
            self._embedded_tokens = len(prompts) * width // 2
            self._note_halved(self._embedded_tokens)
            return []
        except Exception as error:  # the boundary: whatever a model raises
            raise EngineError(f"embedding failed: {type(error).__name__}: {error}") from error

    @torch.inference_mode()
    def _pooled(self, prompts: list[list[int]]) -> list[list[float]]:
        """Prompts from the longest to the shortest."""
        width, device = len(prompts[0]), self._model.device
        # What is padded stands behind, where no token of a prompt looks.
        padded = [prompt + [self._pad_id] * (width - len(prompt)) for prompt in prompts]
        masks = [[1] * len(prompt) + [0] * (width - len(prompt)) for prompt in prompts]
        mask = torch.tensor(masks, device=device)
        read = self._model.base_model(
            input_ids=torch.tensor(padded, device=device), attention_mask=mask, use_cache=False
        )
        weights = mask.to(read.last_hidden_state.device)[:, :, None]
        # Selected and not multiplied, for what stands in padding may be no number.
        states = read.last_hidden_state.float().masked_fill(weights == 0, 0.0)
        means: list[list[float]] = (states.sum(1) / weights.sum(1)).tolist()
        return means

    def _encode_all(self, prompts: Sequence[str]) -> list[list[int] | RefusedError]:
        return [self._encode_to_read(prompt) for prompt in prompts]

    def _encode_to_read(self, prompt: str) -> list[int] | RefusedError:
        try:
            return self._encode(prompt, new_token_count=0)
        except RefusedError as error:
            return error

    def _encode(self, prompt: str, new_token_count: int) -> list[int]:
        if self._config.chat:
            messages = [{"role": "user", "content": prompt}]
            prompt = self._tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=True
            )
        # A template brings the special tokens that it wants.
        encoded = self._tokenizer(prompt, add_special_tokens=not self._config.chat)
        token_ids: list[int] = encoded["input_ids"]
        limit = getattr(self._model.config, "max_position_embeddings", None)
        wanted = len(token_ids) + new_token_count
        if not token_ids or (limit is not None and wanted > limit):
            room = f", and room for max_tokens={new_token_count}" if new_token_count else ""
            raise RefusedError(
                f"a prompt of {len(token_ids)} tokens: must have 1, and at most {limit}{room}"
            )
        return token_ids

    @torch.inference_mode()
    def _generate(
        self, prompts: list[list[int]], attempt_counts: list[int]
    ) -> list[list[Completion]]:
        width = max(map(len, prompts))
        padded = [[self._pad_id] * (width - len(prompt)) + prompt for prompt in prompts]
        masks = [[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts]
        device = self._model.device
        input_ids = torch.tensor(padded, device=device)
        mask = torch.tensor(masks, device=device)
        rows_of = torch.arange(len(prompts)).repeat_interleave(torch.tensor(attempt_counts))
        rows_of = rows_of.to(device)
        rows = self._model.generate(
            input_ids=input_ids[rows_of],
            attention_mask=mask[rows_of],
            stopping_criteria=[self._must_end],
            **self._read_once(input_ids, mask, rows_of),
            **({"tokenizer": self._tokenizer} if self._config.stop else {}),
        )
        completions = iter(self._completions(rows[:, width:].tolist()))
        return [[next(completions) for _ in range(count)] for count in attempt_counts]

    def _must_end(self, rows: Any, _scores: Any, **_: Any) -> Any:
        """For every row whether it ends here, whatever it says: when nobody waits any more."""
        return torch.full((len(rows),), self._is_closing, device=rows.device)

    def _read_once(self, input_ids: Any, mask: Any, rows_of: Any) -> dict[str, Any]:
        """Each prompt's keys and values, but for its last token, computed once for all attempts.

        Nothing where a model keeps something else, or cannot take them.
        """
        if not self._shares_prompts or input_ids.shape[1] == 1 or len(rows_of) == len(input_ids):
            return {}
        try:
            cache = _DynamicCache(config=self._model.config)
            self._model.base_model(
                input_ids=input_ids[:, :-1],
                attention_mask=mask[:, :-1],
                position_ids=(mask.cumsum(-1) - 1).clamp(min=0)[:, :-1],
                past_key_values=cache,
                use_cache=True,
            )
            if all(isinstance(layer, _DynamicLayer) for layer in cache.layers):
                cache.batch_select_indices(rows_of)
                return {"past_key_values": cache}
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # the boundary: models differ, and this is only faster
            logger.warning("prompts read once for each attempt because=%s", error)
        self._shares_prompts = False
        return {}

    def _completions(self, rows: list[list[int]]) -> list[Completion]:
        counts = [self._length(row) for row in rows]
        written = [row[:count] for row, count in zip(rows, counts, strict=True)]
        texts = self._tokenizer.batch_decode(written, skip_special_tokens=True)
        return [
            Completion(_until(text, self._config.stop), count)
            for text, count in zip(texts, counts, strict=True)
        ]

    def _length(self, row: list[int]) -> int:
        """Tokens up to the end, which counts; the padding after a stop does not."""
        for place, token in enumerate(row):
            if token in self._end_ids:
                return place + 1
        length = len(row)
        while self._config.stop and length and row[length - 1] == self._pad_id:
            length -= 1
        return length

    def _read(self, folder: Path) -> dict[str, Any]:
        """A checkpoint's weights as the model names them, in the memory of this machine."""
        try:
            read, told = _AutoModel.from_pretrained(
                folder,
                config=self._model.config,  # of its own the folder needs none
                generation_config=self._model.generation_config,
                dtype=self._model.dtype,
                use_safetensors=True,
                local_files_only=True,
                output_loading_info=True,
            )
        except Exception as error:  # the boundary: whatever a file may hold
            raise CheckpointError(f"{folder}: {' '.join(str(error).split())}") from error
        for what, names in told.items():
            if names and what != "error_msgs":
                shown = ", ".join(map(str, sorted(names)[:3]))
                raise CheckpointError(f"{folder}: has {what.replace('_', ' ')}: {shown}")
        weights: dict[str, Any] = read.state_dict()
        return weights

    def _note_halved(self, token_count: int) -> None:
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        logger.warning("batch halved token_budget=%d because=out of memory", token_count)


create = TransformersEngine


def _ids(given: int | list[int] | None) -> set[int]:
    return set() if given is None else {given} if isinstance(given, int) else set(given)


def _until(text: str, stops: tuple[str, ...]) -> str:
    """What stands before the first of the stops."""
    places = [place for stop in stops if (place := text.find(stop)) >= 0]
    return text[: min(places, default=len(text))]
