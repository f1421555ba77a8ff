"""Every Redis key, in one place.

The hash tag `{run}` keeps all keys of a run on one cluster slot. Permanent keys live as long as
their run; the others carry a time to live.
"""

from __future__ import annotations

from dataclasses import dataclass

RUN_INDEX = "cur:runs"
"""Sorted set of run ids, all with score 0, so that it lists by name."""


@dataclass(frozen=True)
class RunKeys:
    """The keys of one run."""

    run_id: str

    @property
    def prefix(self) -> str:
        return f"cur:{{{self.run_id}}}:"

    @property
    def meta(self) -> str:
        """Hash: `doc` (JSON), `layout`, `policy_step`, each window's group counters, and `seq` and
        `claims`, which count events and those that lease prompts."""
        return f"{self.prefix}meta"

    @property
    def events(self) -> str:
        """Bounded stream of what changed."""
        return f"{self.prefix}events"

    @property
    def leases(self) -> str:
        """Sorted set: batches whose prompts are leased, by the second at which that ends."""
        return f"{self.prefix}leases"

    def catalog(self, chunk: int) -> str:
        """JSON: ids and domains of a chunk of prompts."""
        return f"{self.prefix}catalog:{chunk}"

    def payload(self, chunk: int) -> str:
        """The chunk's encoded prompts, each behind its length."""
        return f"{self.prefix}payload:{chunk}"

    def embedding(self, chunk: int) -> str:
        """Embeddings that came after their prompts, in one call: see `embedding_chunk.py`."""
        return f"{self.prefix}embedding:{chunk}"

    def column(self, window: int, name: str) -> str:
        """Packed big-endian 32-bit cell per prompt: one quantity in one window."""
        return f"{self.prefix}w:{window}:{name}"

    def open_batches(self, number: int) -> str:
        """The batches that were open at a checkpoint, each behind its length."""
        return f"{self.prefix}open:{number}"

    @property
    def deleted(self) -> str:
        """String with a time to live: says that the run was deleted, and not lost."""
        return f"{self.prefix}deleted"

    def batch(self, timeline: int, request_id: str) -> str:
        """Hash with a time to live: a batch's slots, lease expiry and progress."""
        return f"{self.prefix}batch:{timeline}:{request_id}"

    def report(self, timeline: int, request_id: str) -> str:
        """String with a time to live: a report's digest and receipt."""
        return f"{self.prefix}report:{timeline}:{request_id}"

    def rollback(self, request_id: str) -> str:
        """String with a time to live: where a rollback led."""
        return f"{self.prefix}rollback:{request_id}"

    @property
    def importing(self) -> str:
        """Hash with a time to live: what has come of a run that is being imported, by part."""
        return f"{self.prefix}import"
