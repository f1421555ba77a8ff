"""An Atropos environment: questions with one right answer, from the edge of what the model can do.

    run-api &
    CURRICULUM_RUN=math python clients/examples/atropos.py serve --slurm false \
        --env.tokenizer_name Qwen/Qwen2.5-1.5B --openai.model_name Qwen/Qwen2.5-1.5B

Its items are a run's prompts, whose payload has the `answer`. Lines that end in `# curriculum` are
what an environment adds to use the service; it has no `get_next_item`.
"""

from __future__ import annotations

from typing import Any

from atroposlib.envs.base import APIServerConfig, BaseEnvConfig, ScoredDataGroup

from curriculum_client import ServedPrompt  # curriculum
from curriculum_client.adapters.atropos import CurriculumEnv  # curriculum

EXAMINATION = {"What is 17 + 25?": "42", "What is 6 * 7?": "42", "What is 91 - 13?": "78"}


class AnswerEnv(CurriculumEnv):  # curriculum
    """Asks for completions of a prompt; one passes that ends in the answer."""

    name = "answers"

    @classmethod
    def config_init(cls) -> tuple[BaseEnvConfig, list[APIServerConfig]]:
        config = BaseEnvConfig(
            wandb_name=cls.name, use_wandb=False, group_size=8, max_token_length=512
        )
        server = APIServerConfig(
            base_url="http://localhost:9001/v1", api_key="x", server_type="openai"
        )
        return config, [server]

    async def setup(self) -> None:
        self.use_curriculum()  # curriculum

    async def collect_trajectories(self, item: ServedPrompt) -> tuple[ScoredDataGroup, list[Any]]:
        texts = await self.ask(item.text, self.config.group_size)
        group = ScoredDataGroup(tokens=[], masks=[], scores=[])
        asked = self.tokenizer.encode(item.text)
        for text in texts:
            answered = self.tokenizer.encode(text, add_special_tokens=False)
            group["tokens"].append(asked + answered)
            group["masks"].append([-100] * len(asked) + answered)
            group["scores"].append(float(is_right(text, str(item.payload["answer"]))))
        return group, []

    async def evaluate(self, *args: Any, **kwargs: Any) -> None:
        right_count = 0
        for question, answer in EXAMINATION.items():
            [text] = await self.ask(question, 1, split="eval")
            right_count += is_right(text, answer)
        print(f"step {self.curr_step}: {right_count} of {len(EXAMINATION)} right", flush=True)

    async def ask(self, prompt: str, count: int, **options: Any) -> list[str]:
        completion = await self.server.completion(
            prompt=prompt, n=count, max_tokens=self.config.max_token_length, **options
        )
        return [choice.text for choice in completion.choices]


def is_right(text: str, answer: str) -> bool:
    return text.split()[-1:] == [answer]


if __name__ == "__main__":
    AnswerEnv.cli()
