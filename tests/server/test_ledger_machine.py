"""Whatever trainers, probers and operators do in whatever order, the ledger counts it once."""

from __future__ import annotations

import os

import pytest

from tests.server.ledger_machine import live
from tests.server.ledger_world import open_world

LIVES = int(os.environ.get("LEDGER_LIVES", "50"))
"""Some seconds for each ten."""
SEED = int(os.environ.get("LEDGER_SEED", "0"))
"""Another one, other lives."""


@pytest.fixture(scope="module")
def world(loop_thread):
    with open_world(loop_thread) as opened:
        yield opened


@pytest.mark.timeout(60 + 2 * LIVES)
def test_the_ledger_holds_what_a_plain_model_holds_whatever_happens_to_it(world):
    live(world, LIVES, SEED)
