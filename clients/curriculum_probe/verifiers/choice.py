"""The completion chooses the answer's letter.

The payload's `answer` is a letter, or the text of one of its `choices`, a list. What a completion
chooses is told by the first of these rules that applies:

1. what its last `<answer>…</answer>` or, without one, its last `\\boxed{…}` holds;
2. its last phrase such as "the answer is (B)", "Answer: B" or "I choose option B", which chooses
   nothing if it goes on to another letter ("B or C");
3. its last line, if that is only a letter, as in "(B)" or "B.", or only the text of a choice;
4. the lines that begin with a letter, as in "B) Paris", if it is the same one in all of them.

A letter may stand in brackets, emphasis, `$…$` or `\\text{…}`. A bare small one counts where its
line ends with it, and a bare A or I not where it seems to be a word. What is merely mentioned, as
in "not B", is not chosen. A completion that chooses nothing is wrong.
"""

from __future__ import annotations

import re
import string
from collections.abc import Mapping

from curriculum_probe.verifiers.base import Payload, Scorer, UnverifiableError

# Written so that none takes more than a multiple of the text's length, given its plain white space.
_TAGGED = re.compile(r"<answer>((?:(?!<answer>).)*?)</answer>", re.DOTALL | re.IGNORECASE)
_BOXED = re.compile(r"\\boxed\s*\{([^{}]*)\}")
_STYLED = re.compile(r"\\(?:text|textbf|textit|mathrm|mathbf)\s*\{([^{}]*)\}")
_ORNAMENTS = str.maketrans("", "", "*`$_#")
_LETTER = (
    r"(?:[(\[]\s*(?P<bracketed>[A-Za-z])\s*[)\]]"
    r"|(?P<word>[AI])(?![\w'’])(?!\s+(?!(?:because|since|as|which|with|for|and|or)\b)[a-z])"
    r"|(?P<capital>[B-HJ-Z])(?![\w'’])"
    r"|(?P<small>[a-z])(?=[.,;:!]* ?$))"
)
_PHRASE = re.compile(
    r"(?i:\b(?:(?:answer|choice|option)(?:\s+(?:is|must\s+be|should\s+be|would\s+be)\b\s*:?|\s*:)"
    r"|I(?:['’]ll|\s+will|\s+would)?\s+(?:choose|pick|select|go\s+with)\b)\s*"
    r"(?:(?:the\s+)?(?:answer|option|choice|letter)\b\s*)?)" + _LETTER,
    re.MULTILINE,
)
_ANOTHER = re.compile(r"\s*(?:,|/|&|and\b|or\b)\s*(?:and\b|or\b)?\s*(?:[(\[][A-Za-z][)\]]|[A-Z]\b)")
_ALONE = re.compile(r"[(\[]?\s*([A-Za-z])\s*[)\]]?\s*[.:]?")
_LABELLED = re.compile(r"^\s*(?:\(([A-Z])\)|([A-Z])\s*[).:])(?=\s|$)", re.MULTILINE)


def prepare(payload: Payload) -> Scorer:
    letters = _letters_by_text(payload)
    answer = _answer(payload, letters)
    return lambda completion: float(_chosen(_plain(completion), letters) == answer)


def _chosen(text: str, letters: Mapping[str, str]) -> str | None:
    """The chosen letter; `text` is plain, and `letters` are by the choices' texts."""
    for marked in (_TAGGED.findall(text), _BOXED.findall(text)):
        if marked:
            labels = _labels(marked[-1])
            return _only(marked[-1], letters) or (labels.pop() if len(labels) == 1 else None)
    phrases = list(_PHRASE.finditer(text))
    if phrases:
        last = phrases[-1]
        return None if _ANOTHER.match(text, last.end()) else _letter(last)
    lines = text.split("\n")
    labels = _labels(text)
    return _only(lines[-1], letters) or (labels.pop() if len(labels) == 1 else None)


def _only(text: str, letters: Mapping[str, str]) -> str | None:
    """The letter, if the text is nothing but a letter or a choice's text."""
    alone = _ALONE.fullmatch(text.strip())
    return alone[1].upper() if alone else letters.get(_key(text))


def _labels(text: str) -> set[str]:
    return {_letter(match) for match in _LABELLED.finditer(text)}


def _letter(match: re.Match[str]) -> str:
    return next(group for group in match.groups() if group).upper()


def _plain(text: str) -> str:
    """Without ornaments, blank lines, and more than one space in a row."""
    bare = _STYLED.sub(r"\1", text).translate(_ORNAMENTS)
    return "\n".join(" ".join(line.split()) for line in bare.splitlines() if line.strip())


def _key(text: str) -> str:
    return " ".join(_plain(text).split()).rstrip(". ").casefold()


def _letters_by_text(payload: Payload) -> dict[str, str]:
    choices = payload.get("choices", [])
    if not isinstance(choices, list) or not all(isinstance(choice, str) for choice in choices):
        raise UnverifiableError("verifier='choice': the payload's choices must be a list of texts")
    letters = dict(zip(map(_key, choices), string.ascii_uppercase, strict=False))
    if len(letters) != len(choices) or len(choices) == 1:
        raise UnverifiableError("verifier='choice': choices must be 2 to 26 different texts")
    return letters


def _answer(payload: Payload, letters: Mapping[str, str]) -> str:
    """The right letter; what may be a letter or a text is a letter."""
    given = payload.get("answer")
    letter = _only(_plain(given), letters) if isinstance(given, str) else None
    if letter is None or (letters and letter not in letters.values()):
        raise UnverifiableError(
            "verifier='choice': the payload's answer must be a letter, or one of its choices"
        )
    return letter
