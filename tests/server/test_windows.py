"""How windows are seen as blocks, and which of them may be merged."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curriculum_server.store.document import Document
from curriculum_server.store.windows import OPEN_WINDOWS, blocks, covering

WINDOW_STEPS = 5


def grown(document):
    """One more window."""
    step = document.windows[-1].last_step + 1
    return document.with_window_for(step, WINDOW_STEPS)


def tidied(document):
    """As a server tidies: group after group until there is none."""
    while groups := document.merges():
        document = document.with_merged(groups[0])
    return document


def seen(document):
    return [(block.first_step, block.last_step, block.span) for block in blocks(document.windows)]


@pytest.mark.parametrize(
    ("settled", "sizes"),
    [
        (0, []),
        (4, [2, 1, 1]),
        (5, [2, 2, 1]),
        (13, [8, 2, 2, 1]),
        (14, [8, 4, 1, 1]),
        (64, [32, 16, 8, 4, 2, 1, 1]),
        (100, [64, 16, 8, 8, 2, 1, 1]),
    ],
)
def test_settled_windows_are_seen_as_powers_of_two_by_age(settled, sizes):
    document = Document(config={})
    for _ in range(settled + OPEN_WINDOWS):
        document = grown(document)
    spans = [block.span for block in blocks(document.windows)]
    assert spans == [1, *sizes, *[1] * OPEN_WINDOWS]
    assert [window.span for window in tidied(document).windows] == spans


def test_a_run_of_100_000_steps_holds_logarithmically_many_windows():
    document, most = Document(config={}), 0
    for _ in range(100_000 // WINDOW_STEPS):
        document = tidied(grown(document))
        most = max(most, len(document.windows))
    assert document.windows[-1].last_step == 100_000
    assert most <= 1 + OPEN_WINDOWS + 2 * math.log2(100_000 / WINDOW_STEPS) + 1


def test_kept_checkpoints_cost_logarithmically_many_windows_each():
    document = Document(config={})
    for number in range(1, 2001):
        document = grown(document)
        if number % 100 == 0:
            document = document.with_checkpoint(str(number), document.windows[-1].last_step, 0)
        document = tidied(document)
    kept = len(document.checkpoints)
    assert kept == 20
    assert len(document.windows) <= (kept + 1) * (OPEN_WINDOWS + 2 * math.log2(2000))
    for mark in document.checkpoints:
        document = document.without_checkpoint(mark.name)
    assert len(tidied(document).windows) <= 1 + OPEN_WINDOWS + 2 * math.log2(2000)


ACTIONS = st.lists(
    st.sampled_from(["grow"] * 12 + ["tidy"] * 3 + ["checkpoint", "let go", "roll back"]),
    max_size=200,
)


@settings(max_examples=200, deadline=None, derandomize=True, database=None)
@given(actions=ACTIONS, pick=st.randoms(use_true_random=False))
def test_merging_never_changes_how_windows_are_seen_now_or_at_a_checkpoint(actions, pick):
    document, seen_at = Document(config={}), {}
    for number, action in enumerate(actions):
        if action == "grow":
            document = grown(document)
        elif action == "tidy":
            before = seen(document)
            document = tidied(document)
            assert seen(document) == before
        elif action == "checkpoint":
            document = document.with_checkpoint(str(number), document.windows[-1].last_step, 0)
            seen_at[str(number)] = seen(document)
        elif document.checkpoints:
            mark = pick.choice(document.checkpoints)
            if action == "let go":
                before = seen(document)
                document = document.without_checkpoint(mark.name)
                assert seen(document) == before
            else:
                document = document.rolled_back_to(mark)
                assert seen(document) == seen_at[mark.name]
        ends = {window.window for window in document.windows}
        assert all(mark.window in ends for mark in document.checkpoints)
        steps = [(w.first_step, w.last_step) for w in document.windows]
        assert all(b[0] > a[1] for a, b in pairwise(steps))


@settings(deadline=None)
@given(count=st.integers(1, 300))
def test_every_window_that_ever_was_is_in_one_block(count):
    document, held = Document(config={}), {}
    for _ in range(count):
        document = grown(document)
        held[document.windows[-1].window] = document.windows[-1].first_step
    for window, step in held.items():
        block = covering(blocks(document.windows), window)
        assert block.first_step <= step <= block.last_step
