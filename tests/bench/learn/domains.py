"""Questions that are short to ask and short to answer, from easy to far beyond a tiny model.

Five families are made here, four are Reasoning Gym's. Each is a ladder of levels. A question is a
string of `CHARACTERS`: a capital that names the family, the question itself, and ``=``; an answer
has at most `MAX_ANSWER` of them.
"""

from __future__ import annotations

import random
import string
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import reasoning_gym

CHARACTERS = string.digits + string.ascii_lowercase + "CDMNPRSTW" + "+-:,<>="
MAX_QUESTION, MAX_ANSWER = 22, 8
_ALPHABET, _BASE = "abcdefgh", 3
"""Of our own families. Small, so that what is hard about a question is its length: what is learned
about a longer one then serves all others, where a large table would be learned entry by entry."""
_PASS_SCORE = 0.99
"""Reasoning Gym's scorers may give a wrong answer a few hundredths."""


@dataclass(frozen=True)
class Question:
    """One instance.

    Attributes:
        family: key of `FAMILIES`.
        level: its place on the family's ladder, 0 is the easiest.
        text: what the model reads.
        answer: a right answer.
        entry: Reasoning Gym's own, for its scorer.
    """

    family: str
    level: int
    text: str
    answer: str
    entry: Mapping[str, Any] | None = None


Make = Callable[[random.Random, int], tuple[str, str]]
"""A question of n digits or letters, and its answer."""


def _letters(rng: random.Random, count: int) -> str:
    return "".join(rng.choices(_ALPHABET, k=count))


def _running_sums(rng: random.Random, n: int) -> tuple[str, str]:
    digits = [rng.randrange(_BASE) for _ in range(n)]
    sums = [sum(digits[: i + 1]) % _BASE for i in range(n)]
    return f"R{''.join(map(str, digits))}=", "".join(map(str, sums))


def _mirrored(rng: random.Random, n: int) -> tuple[str, str]:
    word = _letters(rng, n)
    return f"M{word}=", "".join(_ALPHABET[-1 - _ALPHABET.index(c)] for c in word)


def _sorted_letters(rng: random.Random, n: int) -> tuple[str, str]:
    word = _letters(rng, n)
    return f"T{word}=", "".join(sorted(word))


def _swapped(rng: random.Random, n: int) -> tuple[str, str]:
    word = _letters(rng, n)
    pairs = [word[i : i + 2][::-1] for i in range(0, n, 2)]
    return f"S{word}=", "".join(pairs)


def _without(rng: random.Random, n: int) -> tuple[str, str]:
    word = _letters(rng, n)
    struck = rng.choice(word)
    return f"D{struck}:{word}=", word.replace(struck, "")


@dataclass(frozen=True)
class Gym:
    """A data set of Reasoning Gym: how its instances are put, and how an answer is given back.

    Attributes:
        settings: of each level.
        put: question and answer of an entry, in our characters.
        is_open: whether other answers may be right too, of which its scorer decides. The other
            scorers are not asked: they forgive a letter too many, or a number that is one off.
    """

    settings: tuple[Mapping[str, Any], ...]
    put: Callable[[Mapping[str, Any]], tuple[str, str]]
    is_open: bool = False


def _exactly(parameter: str, values: range, **fixed: Any) -> tuple[Mapping[str, Any], ...]:
    return tuple({f"min_{parameter}": n, f"max_{parameter}": n, **fixed} for n in values)


def _put_chain(entry: Mapping[str, Any]) -> tuple[str, str]:
    expression = entry["question"].split(":")[1].replace(" ", "")
    return f"C{expression}", entry["answer"]


def _put_word(entry: Mapping[str, Any]) -> tuple[str, str]:
    return f"W{entry['question'].split()[-1]}=", entry["answer"]


def _put_numbers(entry: Mapping[str, Any]) -> tuple[str, str]:
    known = entry["metadata"]
    order = "<" if known["direction"] == "ascending" else ">"
    asked, sorted_ = (
        [str(int(float(x))) for x in known[key]] for key in ("original_numbers", "sorted_numbers")
    )
    return f"N{order}{','.join(asked)}=", "".join(sorted_)


def _put_palindrome(entry: Mapping[str, Any]) -> tuple[str, str]:
    return f"P{''.join(entry['metadata']['letters'])}=", entry["answer"]


_DIGITS = {"min_decimals": 0, "max_decimals": 0, "min_value": 0, "max_value": 9}

SYNTHETIC: Mapping[str, tuple[Make, range]] = {
    "mirrored": (_mirrored, range(2, 9)),
    "running sums": (_running_sums, range(3, 9)),
    "sorted letters": (_sorted_letters, range(2, 9)),
    "swapped": (_swapped, range(2, 9)),
    "without": (_without, range(3, 9)),
}
GYMS: Mapping[str, Gym] = {
    "chain_sum": Gym(_exactly("terms", range(2, 6), min_digits=1, max_digits=1), _put_chain),
    "spell_backward": Gym(_exactly("word_len", range(3, 9)), _put_word),
    "number_sorting": Gym(_exactly("numbers", range(2, 9), **_DIGITS), _put_numbers),
    "palindrome_generation": Gym(_exactly("length", range(3, 9)), _put_palindrome, is_open=True),
}
"""By the name that Reasoning Gym has for it."""

FAMILIES = (*SYNTHETIC, *GYMS)


def level_count(family: str) -> int:
    """How long its ladder is."""
    return len(SYNTHETIC[family][1] if family in SYNTHETIC else GYMS[family].settings)


def distinct(family: str, level: int, count: int, seed: int) -> list[Question]:
    """Different questions of a level; fewer if so many are not found in ten times as many."""
    found: dict[str, Question] = {}
    for question in _stream(family, level, 10 * count, seed):
        found.setdefault(question.text, question)
        if len(found) == count:
            break
    return list(found.values())


def _stream(family: str, level: int, most: int, seed: int) -> Iterator[Question]:
    if family in SYNTHETIC:
        make, sizes = SYNTHETIC[family]
        rng = random.Random(f"{family} {level} {seed}")
        for _ in range(most):
            yield Question(family, level, *make(rng, sizes[level]))
        return
    gym = GYMS[family]
    for entry in reasoning_gym.create_dataset(family, size=most, seed=seed, **gym.settings[level]):
        text, answer = gym.put(entry)
        if text[1:] == text[1:].lower():  # some words are names
            yield Question(family, level, text, answer, entry)


def slipped(question: Question, chance: float, rng: random.Random) -> Question:
    """As one would answer it who gets each character wrong with this chance."""
    kinds = (string.digits, string.ascii_lowercase)
    written = [
        rng.choice(next((kind for kind in kinds if c in kind), c)) if rng.random() < chance else c
        for c in question.answer
    ]
    return replace(question, answer="".join(written))


def is_right(question: Question, answer: str) -> bool:
    """Whether it is the answer, or another one where the family has several."""
    if answer == question.answer:
        return True
    gym = GYMS.get(question.family)
    if gym is None or not gym.is_open:
        return False
    score = reasoning_gym.get_score_answer_fn(question.family)
    return float(score(answer, question.entry)) >= _PASS_SCORE
