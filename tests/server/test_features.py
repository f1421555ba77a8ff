"""The feature matrix of a run's pool, built beside the serving."""

from __future__ import annotations

import asyncio
import threading

import numpy as np
import pytest

from curriculum.features import design_matrix
from curriculum_api.errors import CorruptStateError
from curriculum_api.v1 import prompt_pb2
from curriculum_server import convert
from curriculum_server.engine import features
from curriculum_server.engine.catalog import Catalog, encode_chunk
from curriculum_server.engine.embedding_chunk import EMBEDDING_DTYPE, encode_embedding_chunk
from curriculum_server.engine.features import CatalogPrompts, prepare_features


def described(count, first=0):
    """Prompts that have some of everything; one more moves none of the others."""
    return [
        prompt_pb2.Prompt(
            prompt_id=f"p{n}",
            domain="math",
            text=f"{('Add', 'Solve', 'Prove')[n % 3]} {n} and {n * n}",
            tags=["odd"] if n % 2 else [],
            features={"rate": n % 11 / 10} if n % 5 else {},
            embedding=np.sin(n * np.arange(1, 9)) if n % 7 else [],
        )
        for n in range(first, first + count)
    ]


def chunk(prompts):
    new = convert.new_prompts(prompts)
    return encode_chunk(
        *zip(*((p.prompt_id, p.domain, p.field, p.embedding) for p in new), strict=True)
    )


def catalog_of(*sizes):
    catalog = Catalog()
    for size in sizes:
        catalog.append_chunk(*chunk(described(size, len(catalog))))
    return catalog


async def test_prompts_are_read_as_they_were_added():
    given = described(40)
    found = CatalogPrompts(catalog_of(15, 25)).read(np.array([3, 39, 3, 7]))
    for at, n in enumerate((3, 39, 3, 7)):
        assert found.texts[at] == given[n].text.encode()
        assert found.attributes[at] == dict(given[n].features)
        assert list(found.tags[at]) == list(given[n].tags)
        if n == 7:
            assert found.embeddings[at] is None
        else:
            np.testing.assert_array_equal(
                found.embeddings[at], np.array(given[n].embedding, np.float16)
            )


async def test_servers_that_loaded_at_other_moments_have_the_same_features():
    early, late = catalog_of(10), catalog_of(10, 300, 1, 99)
    assert early.features is None
    await prepare_features(early)
    for size in (300, 1, 99):
        early.append_chunk(*chunk(described(size, len(early))))
        await prepare_features(early)
        assert len(early.features) == len(early)
    await prepare_features(late)
    assert early.features.names == late.features.names
    assert early.features.values_NK.tobytes() == late.features.values_NK.tobytes()
    assert "feature:rate" in late.features.names


async def test_features_that_are_there_are_not_built_again():
    catalog = catalog_of(100)
    await prepare_features(catalog)
    known = catalog.features
    await prepare_features(catalog)
    assert catalog.features is known


def embedding_chunk(numbers):
    return encode_embedding_chunk(
        {n: np.sin(n * np.arange(1, 9)).astype(EMBEDDING_DTYPE).tobytes() for n in numbers}
    )


async def test_servers_that_read_embeddings_at_other_moments_have_the_same_features():
    early, late = catalog_of(90), catalog_of(90, 20)
    await prepare_features(early)
    before = early.features
    early.append_embedding_chunk(embedding_chunk([0, 7, 77]))
    await prepare_features(early)
    assert early.features is before  # the chunk waits
    early.append_chunk(*chunk(described(20, 90)))
    early.append_embedding_chunk(embedding_chunk([14, 91, 98]))
    early.use_embedding_chunks(1)
    await prepare_features(early)
    early.use_embedding_chunks(2)
    await prepare_features(early)
    for numbers in ([0, 7, 77], [14, 91, 98]):
        late.append_embedding_chunk(embedding_chunk(numbers))
    late.use_embedding_chunks(2)
    await prepare_features(late)
    assert early.features.names == late.features.names
    assert early.features.values_NK.tobytes() == late.features.values_NK.tobytes()
    assert early.features.values_NK[:90].tobytes() != before.values_NK.tobytes()


async def test_embeddings_that_come_into_use_during_a_build_are_in_the_next(held):
    catalog = catalog_of(500)
    waiting = asyncio.create_task(prepare_features(catalog))
    await asyncio.sleep(0)
    catalog.append_embedding_chunk(embedding_chunk([0, 7]))
    catalog.use_embedding_chunks(1)
    held.may_go_on.set()
    await waiting
    late = catalog_of(500)
    late.append_embedding_chunk(embedding_chunk([0, 7]))
    late.use_embedding_chunks(1)
    await prepare_features(late)
    assert catalog.features.values_NK.tobytes() == late.features.values_NK.tobytes()


async def test_an_empty_pool_has_features_of_no_prompt():
    catalog = Catalog()
    await prepare_features(catalog)
    assert catalog.features.values_NK.shape == (0, 0)


@pytest.fixture
def held(monkeypatch):
    """Lets a build begin, and go on once it is told to; counts the builds."""

    class Held:
        may_go_on = threading.Event()
        count = 0

    def build(prompts):
        Held.count += 1
        assert Held.may_go_on.wait(10)
        return design_matrix(prompts)

    monkeypatch.setattr(features, "design_matrix", build)
    yield Held
    Held.may_go_on.set()


async def test_others_are_served_while_a_large_pool_is_described(held):
    catalog = catalog_of(500)
    task = asyncio.create_task(prepare_features(catalog))
    for _ in range(100):  # the loop goes on: with the build on it, the first turn would never end
        await asyncio.sleep(0)
    assert not task.done()
    held.may_go_on.set()
    await task
    assert len(catalog.features) == 500


async def test_work_that_nobody_waits_for_any_more_serves_the_next(held):
    catalog = catalog_of(500)
    for _ in range(3):
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(prepare_features(catalog), 0.02)
    catalog.append_chunk(*chunk(described(50, 500)))
    waiting = asyncio.create_task(prepare_features(catalog))
    await asyncio.sleep(0)
    held.may_go_on.set()
    await waiting
    assert held.count == 1
    assert len(catalog.features) == 550


@pytest.mark.parametrize("size", [3, 300])
async def test_a_prompt_that_cannot_be_decoded_is_damage_and_repaired_once_it_can(size):
    catalog = catalog_of(size)
    sound, catalog.fields[1] = catalog.fields[1], b"\x0a\x05\xff\xff\xff\xff\xff"
    for _ in range(2):
        with pytest.raises(CorruptStateError, match="cannot be decoded"):
            await prepare_features(catalog)
    catalog.fields[1] = sound
    await prepare_features(catalog)
    assert len(catalog.features) == size
