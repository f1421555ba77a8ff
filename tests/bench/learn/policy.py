"""A policy that answers questions: its warm start, its attempts, and one step of GRPO."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from curriculum.arrays import Floats, Ints
from tests.bench.learn.domains import MAX_ANSWER, MAX_QUESTION, Question, is_right
from tests.bench.learn.transformer import (
    END,
    PAD,
    Shape,
    Transformer,
    decode,
    encode,
    log_probability,
    padded_left,
    sample,
)

Weights = dict[str, Floats]
"""A model's parameters, as they travel between processes."""

Lesson = tuple[float, Sequence[Question]]
"""Examples of one level for the warm start, and how often they come up, however few they are."""


@dataclass(frozen=True)
class Training:
    """How a policy is trained.

    Attributes:
        warm_steps: of supervised training, each on `warm_batch` answers.
        warm_rate: its highest learning rate; it falls to nothing.
        rate: learning rate of GRPO.
        betas: of Adam, for both.
        most_norm: to which gradients are clipped.
        rows: attempts that are sampled at once.
    """

    warm_steps: int = 2000
    warm_batch: int = 64
    warm_rate: float = 2.5e-3
    rate: float = 2e-4
    betas: tuple[float, float] = (0.9, 0.98)
    most_norm: float = 1.0
    rows: int = 4096


@dataclass(frozen=True)
class Attempts:
    """The attempts of one group.

    Attributes:
        codes_GA: what was written, in the CPU's memory.
        reward_G: 1 if right, else 0.
    """

    codes_GA: Tensor
    reward_G: Floats

    @property
    def token_count(self) -> int:
        """Characters written, ends included."""
        return int((self.codes_GA != PAD).sum())


class Policy:
    """A model, its optimiser, and the generator that its attempts are drawn with."""

    def __init__(self, shape: Shape, training: Training, device: torch.device, seed: int) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.model = Transformer(shape, MAX_QUESTION + MAX_ANSWER + 1)
        self.model.to(device)
        self.training, self.device = training, device
        self.generator = torch.Generator(device).manual_seed(seed)
        self._optimizer = self._new_optimizer(training.rate)

    def _new_optimizer(self, rate: float) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.model.parameters(), lr=rate, betas=self.training.betas)

    @property
    def weights(self) -> Weights:
        """A copy."""
        return {name: w.cpu().numpy().copy() for name, w in self.model.state_dict().items()}

    def load(self, weights: Weights) -> None:
        """Take over another's weights."""
        self.model.load_state_dict({name: torch.from_numpy(w) for name, w in weights.items()})

    def warm_start(self, lessons: Sequence[Lesson], seed: int) -> None:
        """Supervised training: mean cross-entropy of the characters of the lessons' answers."""
        steps = self.training.warm_steps
        self._optimizer = self._new_optimizer(self.training.warm_rate)
        for step, batch in zip(range(steps), self._batches(lessons, seed), strict=False):
            pace = min((step + 1) / 50, 1.0) * (1.0 - step / steps)
            self._set_rate(self.training.warm_rate * pace)
            codes_BP = padded_left([question.text for question in batch], self.device)
            answers_B1A = self._padded_right([question.answer for question in batch])
            log_p = log_probability(self.model, codes_BP, answers_B1A)
            _accumulate(-log_p.sum() / (answers_B1A != PAD).sum())
            self._descend()
        self._optimizer = self._new_optimizer(self.training.rate)

    def _batches(self, lessons: Sequence[Lesson], seed: int) -> Iterator[list[Question]]:
        """Random examples, eight batches at a time sorted by length, for little padding."""
        rng, size = random.Random(seed), self.training.warm_batch
        shares = [share for share, _ in lessons]
        while True:
            picked = rng.choices(lessons, shares, k=8 * size)
            drawn = [rng.choice(examples) for _, examples in picked]
            drawn.sort(key=lambda question: len(question.text + question.answer))
            starts = list(range(0, len(drawn), size))
            rng.shuffle(starts)
            yield from (drawn[start : start + size] for start in starts)

    def attempt(
        self,
        questions: Sequence[Question],
        attempts_M: Ints,
        generator: torch.Generator | None = None,
    ) -> list[Attempts]:
        """So many attempts at each question, verified, drawn from the policy's own generator
        or another one."""
        drawn: dict[int, Attempts] = {}
        for chunk in self._chunks(questions, attempts_M):
            codes_BP = padded_left([questions[i].text for i in chunk], self.device)
            count = int(attempts_M[chunk[0]])
            drawing = generator or self.generator
            codes_BGA = sample(self.model, codes_BP, count, MAX_ANSWER + 1, drawing).cpu()
            for i, codes_GA in zip(chunk, codes_BGA, strict=True):
                drawn[i] = Attempts(codes_GA, rewards(questions[i], codes_GA))
        return [drawn[i] for i in range(len(questions))]

    def _chunks(self, questions: Sequence[Question], attempts_M: Ints) -> Iterator[list[int]]:
        """Groups of one size and of about one length, for little padding."""
        order = sorted(
            range(len(questions)), key=lambda i: (int(attempts_M[i]), len(questions[i].text))
        )
        chunk: list[int] = []
        for i in order:
            rows = (len(chunk) + 1) * int(attempts_M[i])
            if chunk and (rows > self.training.rows or attempts_M[i] != attempts_M[chunk[0]]):
                yield chunk
                chunk = []
            chunk.append(i)
        if chunk:
            yield chunk

    def improve(self, questions: Sequence[Question], groups: Sequence[Attempts]) -> None:
        """One step of Adam up the gradient of

            1/T sum over attempts, characters of (r - mean r) / sd r * log p(character)

        with T the characters of all groups. The attempts are the current policy's, so the ratio
        of GRPO's objective is 1 and nothing is clipped; there is no penalty for distance from the
        warm start. A group without spread has no gradient and costs no time.

        Source: GRPO, Shao et al. (2024), arXiv 2402.03300, eq. 3 and section 4.1.2.
        Differs: the mean over all characters, as DAPO has it (arXiv 2503.14476, eq. 12).
        """
        total = sum(group.token_count for group in groups)
        mixed = [i for i, group in enumerate(groups) if np.ptp(group.reward_G) > 0.0]
        if not mixed:
            return
        sizes = np.array([len(group.reward_G) for group in groups])
        kept = [questions[i] for i in mixed]
        for chunk in self._chunks(kept, sizes[mixed]):
            chosen = [groups[mixed[i]] for i in chunk]
            codes_BP = padded_left([kept[i].text for i in chunk], self.device)
            reward_BG = np.stack([group.reward_G for group in chosen])
            centred_BG = reward_BG - reward_BG.mean(axis=1, keepdims=True)
            advantage_BG = centred_BG / reward_BG.std(axis=1, keepdims=True)
            advantage = torch.tensor(advantage_BG, dtype=torch.float32, device=self.device)
            log_p = log_probability(self.model, codes_BP, _stacked(chosen).to(self.device))
            _accumulate(-(advantage[..., None] * log_p).sum() / total)
        self._descend()

    def _padded_right(self, answers: Sequence[str]) -> Tensor:
        width = max(map(len, answers)) + 1
        rows = [[[*encode(text), END] + [PAD] * (width - 1 - len(text))] for text in answers]
        return torch.tensor(rows, device=self.device)

    def _set_rate(self, rate: float) -> None:
        for group in self._optimizer.param_groups:
            group["lr"] = rate

    def _descend(self) -> None:
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.training.most_norm)
        self._optimizer.step()
        self._optimizer.zero_grad()


def _accumulate(loss: Tensor) -> None:
    loss.backward()  # type: ignore[no-untyped-call]  # PyTorch's own


def rewards(question: Question, codes_GA: Tensor) -> Floats:
    """(G,) 1 for an answer that its verifier takes for right; one without an end is wrong."""
    texts = [decode(codes) for codes in codes_GA.tolist()]
    known = {text: text is not None and is_right(question, text) for text in set(texts)}
    return np.array([float(known[text]) for text in texts])


def _stacked(groups: Sequence[Attempts]) -> Tensor:
    """(B, G, A) codes; groups drawn apart may differ in width."""
    width = max(group.codes_GA.shape[1] for group in groups)
    rows = [
        torch.nn.functional.pad(group.codes_GA, (0, width - group.codes_GA.shape[1]), value=PAD)
        for group in groups
    ]
    return torch.stack(rows)
