"""The accounting sees what it is there to see."""

from __future__ import annotations

import time

import numpy as np
import pytest

from tests.chaos.accounting import Books


@pytest.fixture
def books():
    made = Books(prompt_count=3)
    made.sending({0: [1.0, 0.0], 2: [1.0]})
    return made


def ledger(*passes_and_fails):
    return lambda: np.array(passes_and_fails).T


def test_a_report_in_flight_may_be_counted_or_not(books):
    assert books.compare(ledger((0, 0), (0, 0), (0, 0))).is_clean
    assert books.compare(ledger((1, 1), (0, 0), (1, 0))).is_clean


def test_what_was_acknowledged_and_is_not_there_is_lost(books):
    books.acknowledge({0: [1.0, 0.0], 2: [1.0]})
    verdict = books.compare(ledger((1, 0), (0, 0), (0, 0)))
    assert (verdict.acknowledged, verdict.lost, verdict.double) == (3, 2, 0)


def test_what_was_never_sent_is_double(books):
    verdict = books.compare(ledger((1, 1), (0, 4), (2, 0)))
    assert (verdict.lost, verdict.double) == (0, 5)


def test_a_pass_that_became_a_fail_is_lost_and_double(books):
    books.acknowledge({2: [1.0]})
    verdict = books.compare(ledger((0, 0), (0, 0), (0, 1)))
    assert (verdict.lost, verdict.double) == (1, 1)


def test_a_prompt_in_two_live_batches_is_noticed(books):
    soon = time.time() + 60
    books.lease("a", [0, 1], soon)
    books.lease("a", [0, 1], soon)  # the same batch once more
    books.let_go("a", [1])
    books.lease("b", [1, 2], soon)
    assert books.leased_twice == []
    books.lease("c", [0], soon)
    assert len(books.leased_twice) == 1
    assert not books.compare(ledger((0, 0), (0, 0), (0, 0))).is_clean


def test_a_lease_that_ran_out_may_be_given_again(books):
    books.lease("a", [0], time.time() - 1)
    books.lease("b", [0], time.time() + 60)
    assert books.leased_twice == []
