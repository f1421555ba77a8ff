"""As much of vLLM as OpenRLHF's rollout actor calls. It answers "i+i=?", in the characters of
tests/adapters/openrlhf_job.py: of the i, two of four alternate, one is always right, one never."""

from collections import Counter
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

__version__ = "0.29.0"
FIRST = 3 - ord(" ")


@dataclass
class SamplingParams:
    max_tokens: int | None = None
    logprobs: int | None = None
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = -1
    min_tokens: int = 0
    skip_special_tokens: bool = False


class AsyncEngineArgs:
    def __init__(self, *_: Any, **__: Any) -> None: ...


@dataclass
class AsyncLLMEngine:
    asked: Counter[str] = field(default_factory=Counter)

    @classmethod
    def from_engine_args(cls, _: AsyncEngineArgs) -> "AsyncLLMEngine":
        return cls()

    @property
    def output_processor(self) -> Any:
        return SimpleNamespace(get_num_unfinished_requests=lambda: 0)

    async def is_sleeping(self) -> bool:
        return False

    async def generate(self, prompt: Any, *_: Any, **__: Any) -> Any:
        text = "".join(chr(token - FIRST) for token in prompt["prompt_token_ids"])
        number = int(text.split("+")[0])
        attempt, self.asked[text] = self.asked[text], self.asked[text] + 1
        is_right = [attempt % 2, 1 - attempt % 2, True, False][number % 4]
        answer = str(2 * number + (not is_right))
        tokens = [ord(character) + FIRST for character in answer]
        output = SimpleNamespace(token_ids=tokens, text=answer, finish_reason="stop", logprobs=None)
        yield SimpleNamespace(outputs=[output])
