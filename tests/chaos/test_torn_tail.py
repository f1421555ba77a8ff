"""An append-only file cut within the last script's record; `make chaos` cuts at every byte.

The fault is in Redis up to 7.0.15 at least, and in Valkey up to 9.1.1; Valkey 9.1.2 is without.
"""

from __future__ import annotations

import sys

import pytest

from tests.chaos import torn_tail

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="starts a store's own processes"),
    pytest.mark.timeout(240),
]


@pytest.fixture(scope="module")
def faulty(tmp_path_factory):
    """A store with the fault, and its last state before a crash."""
    binary, why = torn_tail.faulty_store(tmp_path_factory.mktemp("wheel"))
    if binary is None:
        pytest.skip(why)
    return binary, torn_tail.prepare(tmp_path_factory.mktemp("faulty"), binary)


def test_the_embedded_store_loses_and_doubles_nothing_wherever_its_file_is_cut(tmp_path):
    template = torn_tail.prepare(tmp_path / "template")
    cuts = template.cuts[::20]
    assert len(cuts) > 30
    assert torn_tail.damages(template, tmp_path / "work", cuts, cure=False) == []


def test_a_store_with_the_fault_loses_or_doubles_what_is_retried_after_two_starts(faulty, tmp_path):
    binary, template = faulty
    cuts = template.cuts[::90]
    harmed = torn_tail.damages(template, tmp_path / "work", cuts, binary=binary, cure=False)
    assert len(harmed) > len(cuts) / 2
    assert sum(damage.lost + damage.double for damage in harmed) > 0


def test_rewriting_its_file_after_an_unclean_stop_cures_it(faulty, tmp_path):
    binary, template = faulty
    cuts = template.cuts[::60]
    assert torn_tail.damages(template, tmp_path / "work", cuts, binary=binary, cure=True) == []
