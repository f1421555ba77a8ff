"""GRPO in plain PyTorch: a tiny transformer learns to write digits backwards, on a CPU.

    curriculum-server &
    python clients/examples/grpo.py                # prompts from the edge
    python clients/examples/grpo.py --uniform      # for comparison; needs no server

It begins with a model that was shown careless answers, the longer the more so: of 3 digits it gets
half right, of 6 some, of 10 none. What is worth sampling is a part of the pool, and moves. Lines
that end in `# curriculum` are what a trainer adds to use the service; with those that end in
`# curriculum: resume` it goes on from its newest checkpoint: kill it and start it again.
"""

from __future__ import annotations

import argparse
import copy
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from curriculum_client import TrainerClient  # curriculum

# isort: split
import grpc
import torch
from torch import Tensor, nn

from curriculum_api.v1 import operator_service_pb2 as operator
from curriculum_api.v1.operator_service_pb2_grpc import OperatorServiceStub
from curriculum_api.v1.prompt_pb2 import Prompt

SYMBOLS, DIGITS, LONGEST = "0123456789= ", "0123456789", 12
GROUP_SIZE, EPOCHS, CLIP = 8, 2, 0.2
Asked = Sequence[tuple[str, str, int]]  # question, right answer, attempts to make
Rolled = tuple[Tensor, Tensor, list[Tensor]]  # codes, which are of answers, rewards by question


def make_prompts(per_length: int, seed: int) -> list[Prompt]:
    """So many different ones of each length, or all there are."""
    rng, prompts = random.Random(seed), []
    for length in range(1, LONGEST + 1):
        for number in rng.sample(range(10**length), min(per_length, 10**length)):
            text = f"{number:0{length}}"
            payload, domain = json.dumps({"answer": text[::-1]}), f"{length:02}-digits"
            prompts.append(Prompt(prompt_id=text, domain=domain, text=text, payload_json=payload))
    return prompts


def create_run(server: str, run_id: str, prompts: Sequence[Prompt]) -> None:
    """As `curriculum runs create` and `curriculum prompts add` do; nothing is done twice."""
    with grpc.insecure_channel(server) as channel:
        stub = OperatorServiceStub(channel)
        stub.CreateRun(operator.CreateRunRequest(run_id=run_id))
        stub.AddPrompts(operator.AddPromptsRequest(run_id=run_id, prompts=prompts))


class Policy(nn.Module):
    """100,000 parameters. Questions end, and answers begin, in one place."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.embedding = nn.Embedding(len(SYMBOLS), width)
        self.place = nn.Parameter(0.1 * torch.randn(2 * LONGEST + 1, width))
        layer = nn.TransformerEncoderLayer(
            width, 4, 4 * width, dropout=0.0, batch_first=True, norm_first=True
        )
        self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(width, len(SYMBOLS))

    def forward(self, codes: Tensor) -> Tensor:
        """Logits of what follows each code."""
        mask = nn.Transformer.generate_square_subsequent_mask(codes.shape[1])
        x = self.embedding(codes) + self.place[: codes.shape[1]]
        return self.head(self.layers(x, mask=mask, is_causal=True))

    def log_probability(self, codes: Tensor) -> Tensor:
        """Of each code of the answers."""
        chosen = codes[:, LONGEST + 1 :, None]
        return self(codes[:, :-1])[:, LONGEST:].log_softmax(-1).gather(-1, chosen)[..., 0]


def encode(texts: Sequence[str]) -> Tensor:
    """Of texts of one length."""
    return torch.tensor([[SYMBOLS.index(symbol) for symbol in text] for text in texts])


def answer_mask(answers: Sequence[str], width: int) -> Tensor:
    """Which of so many codes belong to the answer."""
    return torch.arange(width) < torch.tensor([len(answer) for answer in answers])[:, None]


def warm_start(policy: Policy, steps: int, seed: int) -> None:
    """Supervised training on careless answers: the longer, the more of their digits are random."""
    rng, rate = random.Random(seed), 3e-3
    optimizer = torch.optim.Adam(policy.parameters(), betas=(0.9, 0.98))
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = rate * min((step + 1) / 30, 1 - step / steps)
        asked = ["".join(rng.choices(DIGITS, k=rng.randint(1, LONGEST))) for _ in range(64)]
        texts = []
        for text in asked:
            right, slips = text[::-1], 0.8 * len(text) / LONGEST
            answer = "".join(rng.choice(DIGITS) if rng.random() < slips else d for d in right)
            texts.append(f"{text:>{LONGEST}}={answer:<{LONGEST}}")
        log_p = policy.log_probability(encode(texts))
        descend(policy, optimizer, -log_p[answer_mask(asked, LONGEST)].mean())


def descend(policy: Policy, optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
    optimizer.step()


@torch.no_grad()
def rollout(policy: Policy, asked: Asked, generator: torch.Generator) -> Rolled:
    """What was written, which codes of it are answers, and each question's rewards."""
    answers = [answer for _, answer, count in asked for _ in range(count)]
    codes = encode([f"{text:>{LONGEST}}=" for text, _, count in asked for _ in range(count)])
    width = max(map(len, answers))
    for _ in range(width):
        probability = policy(codes)[:, -1].softmax(-1)
        codes = torch.cat([codes, probability.multinomial(1, generator=generator)], dim=1)
    mask = answer_mask(answers, width)
    right = encode([f"{answer:<{width}}" for answer in answers])
    rewards = ((codes[:, -width:] == right) | ~mask).all(dim=1).float()
    return codes, mask, list(rewards.split([count for _, _, count in asked]))


@dataclass
class Training:
    """Whatever a checkpoint holds."""

    policy: Policy
    reference: Policy
    optimizer: torch.optim.Optimizer
    generator: torch.Generator
    step: int = 0
    rollouts: int = 0

    def save(self, file: Path, curriculum: TrainerClient) -> None:
        """Marks the checkpoint before the file names it, and has one whole file at any time."""
        name = f"step-{self.step}"
        curriculum.checkpoint(name, self.step)  # curriculum: resume
        state = {"step": self.step, "rollouts": self.rollouts, "checkpoint": name}
        state["curriculum"] = curriculum.state_dict()  # curriculum: resume
        state["generator"] = self.generator.get_state()
        for part in ("policy", "reference", "optimizer"):
            state[part] = getattr(self, part).state_dict()
        file.parent.mkdir(parents=True, exist_ok=True)
        torch.save(state, file.with_suffix(".new"))
        file.with_suffix(".new").replace(file)

    def resume(self, file: Path, curriculum: TrainerClient) -> None:
        state = torch.load(file)
        self.step, self.rollouts = state["step"], state["rollouts"]
        self.generator.set_state(state["generator"])
        for part in ("policy", "reference", "optimizer"):
            getattr(self, part).load_state_dict(state[part])
        curriculum.load_state_dict(state["curriculum"])  # curriculum: resume
        curriculum.rollback(state["checkpoint"])  # curriculum: resume


def learn(training: Training, rolled: Rolled, kl: float) -> None:
    """The clipped surrogate, with a penalty for leaving the reference policy if `kl` is not 0."""
    policy, (codes, mask, groups) = training.policy, rolled
    advantage = torch.cat([(r - r.mean()) / (r.std(correction=0) + 1e-6) for r in groups])
    taught = advantage != 0.0  # a group that is not mixed has no gradient
    codes, mask, advantage = codes[taught], mask[taught], advantage[taught, None]
    with torch.no_grad():
        old, away = policy.log_probability(codes), training.reference.log_probability(codes)
    for _ in range(EPOCHS if len(codes) else 0):
        log_p = policy.log_probability(codes)
        ratio = (log_p - old).exp()
        gain = torch.minimum(ratio * advantage, ratio.clamp(1 - CLIP, 1 + CLIP) * advantage)
        penalty = (away - log_p).exp() - (away - log_p) - 1
        descend(policy, training.optimizer, (kl * penalty - gain)[mask].mean())


def held_out_pass_rate(policy: Policy, prompts: Sequence[Prompt]) -> float:
    """Sampled with the same random numbers each time."""
    asked = [(p.text, p.text[::-1], 1) for p in prompts]
    return torch.cat(rollout(policy, asked, torch.Generator().manual_seed(0))[2]).mean().item()


def read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--server", default="localhost:50051")
    parser.add_argument("--run", default="backwards", help="made if it is not there")
    parser.add_argument("--uniform", action="store_true", help="without the service")
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--batch", type=int, default=16, help="prompts of a step")
    parser.add_argument("--pool", type=int, default=80, help="prompts of each length")
    parser.add_argument("--rate", type=float, default=2e-4, help="of learning")
    parser.add_argument("--warm-steps", type=int, default=500, help="of supervised training")
    parser.add_argument("--kl", type=float, default=0.0, help="weight of the penalty, 0 for none")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--examine-every", type=int, default=20, metavar="STEPS")
    parser.add_argument("--save-every", type=int, default=20, metavar="STEPS")
    parser.add_argument("--out", type=Path, default=Path("out/grpo"), help="for checkpoints")
    return parser.parse_args()


def main() -> None:
    args = read_arguments()
    file = args.out / f"{args.run}.pt"
    pool = make_prompts(args.pool, args.seed)
    known = {prompt.text for prompt in pool}
    held_out = [p for p in make_prompts(50, args.seed + 1) if p.text not in known]
    torch.manual_seed(args.seed)
    policy = Policy()
    warm_start(policy, args.warm_steps, args.seed)
    optimizer = torch.optim.Adam(policy.parameters(), lr=args.rate, betas=(0.9, 0.98))
    generator = torch.Generator().manual_seed(args.seed)
    training = Training(policy, copy.deepcopy(policy), optimizer, generator)
    with TrainerClient(args.server, run_id=args.run) as curriculum:  # curriculum
        if not args.uniform and file.exists():
            training.resume(file, curriculum)
        elif not args.uniform:
            create_run(args.server, args.run, pool)
            training.save(file, curriculum)  # so that there is one to go back to
        print(f"step {training.step}: held out {held_out_pass_rate(policy, held_out):.3f}")
        while training.step < args.steps:
            if args.uniform:
                chosen = random.Random(f"{args.seed}/{training.step}").sample(pool, args.batch)
                asked = [(p.text, p.text[::-1], GROUP_SIZE) for p in chosen]
            else:
                batch = curriculum.next_batch(args.batch, policy_step=training.step)  # curriculum
                asked = [(p.text, p.payload["answer"], p.attempt_count) for p in batch]
            rolled = rollout(policy, asked, generator)
            groups = rolled[2]
            if not args.uniform:
                curriculum.report(batch, groups, policy_step=training.step)  # curriculum
            learn(training, rolled, args.kl)
            training.step += 1
            training.rollouts += sum(map(len, groups))
            mixed = sum(0 < group.sum() < len(group) for group in groups) / len(groups)
            line = f"step {training.step}: rollouts {training.rollouts}, mixed {mixed:.2f}, "
            line += f"passed {torch.cat(groups).mean():.2f}"
            if training.step % args.examine_every == 0:
                line += f", held out {held_out_pass_rate(policy, held_out):.3f}"
            print(line, flush=True)
            if not args.uniform and training.step % args.save_every == 0:
                training.save(file, curriculum)


if __name__ == "__main__":
    main()
