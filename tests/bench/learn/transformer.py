"""A small decoder whose attempts at one question share what was computed for the question.

Axes: B questions, P characters of a question, G attempts at each, A characters of an answer,
H heads, D channels of a head.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.bench.learn.domains import CHARACTERS

PAD, END = 0, 1
_CODES = {character: code for code, character in enumerate(CHARACTERS, start=2)}
_HIDDEN = -1e9  # finite, for a padded place attends to nothing else and must not become NaN


def encode(text: str) -> list[int]:
    """Character by character."""
    return [_CODES[character] for character in text]


def decode(codes: Sequence[int]) -> str | None:
    """The text before the end; None if there is no end or a character that no text has."""
    if END not in codes:
        return None
    written = codes[: list(codes).index(END)]
    return None if PAD in written else "".join(CHARACTERS[code - 2] for code in written)


def padded_left(texts: Sequence[str], device: torch.device) -> Tensor:
    """(B, P) codes; all end in the same place, where the answers begin."""
    width = max(map(len, texts))
    rows = [[PAD] * (width - len(text)) + encode(text) for text in texts]
    return torch.tensor(rows, device=device)


@dataclass(frozen=True)
class Shape:
    """Of a model."""

    width: int
    layers: int
    heads: int


@dataclass
class Memory:
    """Keys and values of what was read, by layer.

    Attributes:
        question: of (B, P, H, D) each.
        answer: of (B, G, characters so far, H, D) each.
        hidden_BP: 0 where a question has a character, very negative where it is padded.
        length: P.
    """

    question: list[tuple[Tensor, Tensor]]
    answer: list[tuple[Tensor, Tensor] | None]
    hidden_BP: Tensor
    length: int


class Layer(nn.Module):
    """Attention and a feed-forward layer, each on normalised input and added to it."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.heads = shape.heads
        self.attention_norm = nn.LayerNorm(shape.width)
        self.qkv = nn.Linear(shape.width, 3 * shape.width, bias=False)
        self.out = nn.Linear(shape.width, shape.width, bias=False)
        self.norm = nn.LayerNorm(shape.width)
        self.up = nn.Linear(shape.width, 3 * shape.width)
        self.down = nn.Linear(3 * shape.width, shape.width)

    def project(self, x: Tensor, turn: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Queries and keys turned by their places, and values: (..., characters, H, D)."""
        q, k, v = (
            part.unflatten(-1, (self.heads, -1))
            for part in self.qkv(self.attention_norm(x)).chunk(3, dim=-1)
        )
        return _turned(q, turn), _turned(k, turn), v

    def finish(self, x: Tensor, attended: Tensor) -> Tensor:
        """What follows attention."""
        x = x + self.out(attended.flatten(-2))
        added: Tensor = self.down(functional.gelu(self.up(self.norm(x)), approximate="tanh"))
        return x + added


class Transformer(nn.Module):
    """Rotary positions, so that only distances matter and questions may be padded on the left."""

    def __init__(self, shape: Shape, places: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(len(CHARACTERS) + 2, shape.width)
        self.layers = [Layer(shape) for _ in range(shape.layers)]
        self._registered = nn.ModuleList(self.layers)  # whose own items have no type
        self.norm = nn.LayerNorm(shape.width)
        self.head = nn.Linear(shape.width, len(CHARACTERS) + 2, bias=False)
        half = shape.width // shape.heads // 2
        angle = torch.arange(places)[:, None] / 100.0 ** (torch.arange(half) / half)
        self.cos = nn.Buffer(angle.cos(), persistent=False)
        self.sin = nn.Buffer(angle.sin(), persistent=False)
        nn.init.normal_(self.embedding.weight, std=0.02)

    def read(self, codes_BP: Tensor) -> Memory:
        """The questions, but for their last character, with which the answers begin."""
        codes = codes_BP[:, :-1]
        length = codes.shape[1]
        hidden_BP = torch.where(codes == PAD, _HIDDEN, 0.0)
        ahead = torch.full((length, length), _HIDDEN, device=codes.device).triu(1)
        mask = hidden_BP[:, None, None, :] + ahead
        memory = Memory([], [None] * len(self.layers), hidden_BP, length)
        x, turn = self.embedding(codes), self._turn(0, length)
        for i, layer in enumerate(self.layers):
            q, k, v = layer.project(x, turn)
            memory.question.append((k, v))
            if i + 1 < len(self.layers):  # nobody sees what the last one would add
                q, k, v = (part.transpose(1, 2) for part in (q, k, v))
                attended = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
                x = layer.finish(x, attended.transpose(1, 2))
        return memory

    def write(self, codes_BGA: Tensor, memory: Memory) -> Tensor:
        """(B, G, A, codes) logits of what follows each character; the memory grows by A."""
        past = 0 if memory.answer[0] is None else memory.answer[0][0].shape[2]
        count = codes_BGA.shape[2]
        turn = self._turn(memory.length + past, count)
        ahead = torch.full((count, past + count), _HIDDEN, device=codes_BGA.device).triu(1 + past)
        x = self.embedding(codes_BGA)
        for i, layer in enumerate(self.layers):
            q, k, v = layer.project(x, turn)
            before = memory.answer[i]
            if before is not None:
                k, v = torch.cat([before[0], k], dim=2), torch.cat([before[1], v], dim=2)
            memory.answer[i] = (k, v)
            x = layer.finish(x, _attended(q, memory.question[i], (k, v), memory.hidden_BP, ahead))
        logits: Tensor = self.head(self.norm(x))
        return logits

    def _turn(self, first: int, count: int) -> tuple[Tensor, Tensor]:
        places = slice(first, first + count)
        return self.cos[places, None], self.sin[places, None]


def _turned(x: Tensor, turn: tuple[Tensor, Tensor]) -> Tensor:
    cos, sin = turn
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, first * sin + second * cos], dim=-1)


def _attended(
    q: Tensor,
    question: tuple[Tensor, Tensor],
    answer: tuple[Tensor, Tensor],
    hidden_BP: Tensor,
    ahead: Tensor,
) -> Tensor:
    """Attention of each attempt to its question, held once for all of them, and to itself."""
    q = q / math.sqrt(q.shape[-1])
    to_question = torch.einsum("bgahd,bphd->bhgap", q, question[0])
    to_question = to_question + hidden_BP[:, None, None, None, :]
    to_answer = torch.einsum("bgahd,bgthd->bhgat", q, answer[0]) + ahead
    weight = torch.cat([to_question, to_answer], dim=-1).softmax(dim=-1)
    length = to_question.shape[-1]
    on_question = torch.einsum("bhgap,bphd->bgahd", weight[..., :length], question[1])
    return on_question + torch.einsum("bhgat,bgthd->bgahd", weight[..., length:], answer[1])


@torch.no_grad()
def sample(
    model: Transformer, codes_BP: Tensor, attempts: int, most: int, generator: torch.Generator
) -> Tensor:
    """(B, attempts, <= most) codes drawn at temperature 1; what follows an end is padding."""
    memory = model.read(codes_BP)
    last = codes_BP[:, -1, None, None].expand(-1, attempts, 1)
    done = torch.zeros_like(last, dtype=torch.bool)
    drawn: list[Tensor] = []
    while len(drawn) < most and not bool(done.all()):
        probability = model.write(last, memory)[:, :, -1].softmax(dim=-1)
        race = torch.empty_like(probability).exponential_(generator=generator)
        last = (probability / race).argmax(dim=-1, keepdim=True)  # exponential clocks: the first
        last = last.masked_fill(done, PAD)
        done = done | (last == END)
        drawn.append(last)
    return torch.cat(drawn, dim=-1)


def log_probability(model: Transformer, codes_BP: Tensor, answers_BGA: Tensor) -> Tensor:
    """(B, G, A) log probability of each character of the answers; 0 where they are padded."""
    start = codes_BP[:, -1, None, None].expand(-1, answers_BGA.shape[1], 1)
    logits = model.write(torch.cat([start, answers_BGA[..., :-1]], dim=-1), model.read(codes_BP))
    chosen = -functional.cross_entropy(
        logits.flatten(0, -2), answers_BGA.flatten(), reduction="none", ignore_index=PAD
    )
    return chosen.view_as(answers_BGA)
