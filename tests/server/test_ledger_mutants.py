"""The ledger's state machine finds what it is there to find: bugs planted in the Lua scripts.

Each mutant drops one of the scripts' precautions. It must answer calls that nothing interferes
with, so that it is none that anybody would notice, and must not outlive a number of random lives
that `test_ledger_machine` lives, from the same seeds, with the scripts as they are.
"""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from curriculum_api.v1 import prompt_pb2
from curriculum_server.store import batches, commit, reports
from tests.server.ledger_machine import live
from tests.server.ledger_model import Model
from tests.server.ledger_world import open_world

LIVES = 40
"""Most mutants die in the first ten."""


@dataclass(frozen=True)
class Mutant:
    """A change of one script."""

    name: str
    module: object
    script: str
    text: str
    other: str


MUTANTS = [
    Mutant(
        "a report leaves no record",
        reports, "_REPORT",
        "redis.call('SET', record, digest .. receipt, 'EX', string.format('%d', keep))", "",
    ),
    Mutant(
        "the record of a report is not looked at",
        reports, "_REPORT", "if seen then", "if false then",
    ),
    Mutant(
        "the record of a report is forgotten before its batch",
        reports, "_REPORT", "string.format('%d', keep)", "'30'",
    ),
    Mutant(
        "a report does not compare how far the batch has come",
        reports, "_REPORT", "if known[2] ~= before then", "if false then",
    ),
    Mutant(
        "a report takes another batch of the same name for its own",
        reports, "_REPORT", "if (known[3] or '') ~= born then", "if false then",
    ),
    Mutant(
        "a report does not note how far the batch has come",
        reports, "_REPORT", "redis.call('HSET', batch, 'progress', after)", "",
    ),
    Mutant(
        "a report of before a rollback is counted",
        reports, "_REPORT", "if state[1] ~= layout then", "if not state[1] then",
    ),
    Mutant(
        "a report leaves out a column",
        reports, "_REPORT", "for c = 5, #KEYS do", "for c = 5, math.min(#KEYS, 6) do",
    ),
    Mutant(
        "a report takes signed columns for unsigned ones",
        reports, "_REPORT", "ARGV[2 * c + 8], {", "'u32', {",
    ),
    Mutant(
        "groups are not counted",
        reports, "_REPORT", "if groups ~= '0' then", "if false then",
    ),
    Mutant(
        "every group is taken for mixed",
        reports, "_REPORT", "'mixed:' .. window, mixed", "'mixed:' .. window, groups",
    ),
    Mutant(
        "a report is kept from the other servers",
        reports, "_REPORT", "'completed', completed, 'groups', groups,",
        "'completed', '', 'groups', '0',",
    ),
    Mutant(
        "a report does not raise the policy step",
        reports, "_REPORT", "if tonumber(step) > tonumber(state[2]) then", "if false then",
    ),
    Mutant(
        "a batch that is asked for again is another one",
        batches, "_CLAIM", "if known[1] then", "if false then",
    ),
    Mutant(
        "prompts are leased without having seen every lease",
        batches, "_CLAIM", "if claims ~= state[3] or (seq ~= '' and not is_fresh) then",
        "if false then",
    ),
    Mutant(
        "prompts are leased on a timeline that ended",
        batches, "_CLAIM", "if state[1] ~= layout then", "if not state[1] then",
    ),
    Mutant(
        "leases are in no list",
        batches, "_CLAIM", "redis.call('ZADD', leases, expire, batch)", "",
    ),
    Mutant(
        "servings are not logged",
        batches, "_CLAIM", "if pairs_blob ~= '' then", "if false then",
    ),
    Mutant(
        "a claim is kept from the other servers",
        batches, "_CLAIM", "'indices', indices,", "'indices', '',",
    ),
    Mutant(
        "a batch that is given back stays open",
        batches, "_SET_LEASES", "redis.call('HSET', batch, 'progress', after)", "",
    ),
    Mutant(
        "that a batch is given back is kept from the other servers",
        batches, "_SET_LEASES", "'indices', indices)", "'indices', '')",
    ),
    Mutant(
        "leases that ran out are renewed",
        batches, "_SET_LEASES", "if tonumber(known[1]) <= now or not listed then", "if false then",
    ),
    Mutant(
        "a renewal moves the lease of nobody",
        batches, "_SET_LEASES", "redis.call('HSET', batch, 'expire', expire)", "",
    ),
    Mutant(
        "a change of the run overwrites another",
        commit, "_COMMIT", "if layout ~= expected then", "if not layout then",
    ),
    Mutant(
        "a change of the run is kept from the other servers",
        commit, "_COMMIT", "string.format('%d', math.max(layout + 1, now_ms))", "layout",
    ),
    Mutant(
        "a rollback leaves the columns of later windows",
        commit, "_COMMIT", "redis.call('UNLINK', KEYS[i])", "local kept = KEYS[i]",
    ),
    Mutant(
        "a rollback leaves the groups and the step of later windows",
        commit, "_COMMIT", "for i = 1, field_count do", "for i = 1, 0 do",
    ),
]  # fmt: skip


@pytest.fixture(scope="module")
def world(loop_thread):
    with open_world(loop_thread) as opened:
        yield opened


def a_quiet_life(world):
    """One call after the other through one server, with nothing to go wrong."""
    run = world.server(world.create_run(Model()), 0)
    run.add(prompt_pb2.Prompt(prompt_id=f"p{i}", domain="d") for i in range(4))
    batch = run.next(count=2)
    run.report(batch, {0: [1.0, -1.0], 1: [0.5]})
    run.release(batch)
    run.checkpoint("a", 0)
    run.rollback("a")
    assert len(run.next(count=4).prompts) == 4


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_a_planted_bug_is_found(world, monkeypatch, mutant):
    script = getattr(mutant.module, mutant.script)
    assert script.count(mutant.text) == 1
    monkeypatch.setattr(mutant.module, mutant.script, script.replace(mutant.text, mutant.other))
    a_quiet_life(world)
    with pytest.raises(Exception):  # noqa: B017, PT011 - whatever it is that gives it away
        live(world, LIVES)
