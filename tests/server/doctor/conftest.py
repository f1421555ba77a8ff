"""A server over a store of its own, which a test may damage."""

from __future__ import annotations

import pytest

from tests.conftest import CONFIG, RunningServer
from tests.server.processes import PlainValkey


@pytest.fixture(scope="module")
def store():
    valkey = PlainValkey()
    client = valkey.start()
    client.config_set("appendfsync", "always")
    client.url = valkey.url
    yield client
    client.close()
    valkey.close()


@pytest.fixture(scope="module")
def stubs(loop_thread, store):
    """A server over a store of this module's own, which it may damage."""
    running = RunningServer(loop_thread, type(CONFIG)(**vars(CONFIG) | {"redis": store.url}))
    yield running.stubs
    running.stop()


@pytest.fixture(autouse=True)
def emptied(store):
    """Whatever a test does to the store is gone after it."""
    yield
    store.flushall()
