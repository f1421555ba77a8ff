"""Tests a training loop without a server: a fake of the contract, and what the loop did.

    >>> from curriculum_client.testing import FakeCurriculum
    >>> with FakeCurriculum(["1 + 1 = ?", "2 + 2 = ?", "3 + 3 = ?"], group_size=4) as fake:
    ...     with fake.client() as curriculum:
    ...         for step in range(3):
    ...             batch = curriculum.next_batch(prompt_count=2, policy_step=step)
    ...             rewards = {p.prompt_id: [0, 1] * (p.attempt_count // 2) for p in batch}
    ...             receipt = curriculum.report(batch, rewards, policy_step=step)
    >>> dict(fake.attempts)
    {'p0': 8, 'p1': 8, 'p2': 8}
    >>> len(fake.batches), fake.unreported
    (3, [])

`fake.client()` is a real `TrainerClient` of a gRPC server on a loopback port of this process, so a
loop meets pickling, threads, forks, retries and lost answers as it will; `fail_next`, `delay_s`,
`go_away`, `come_back` and `expire_leases` see to it that it does. Batches, leases, reports,
checkpoints and rollbacks are repeated, counted and refused as the service does. It fakes the
contract and not the selection: every prompt is served once before any twice, in an order drawn from
the seed, whatever was reported. What it leaves out:

* beliefs: every `pass_rate` is 0.5. No edge, reach, review, rest or domain shares; a rollout budget
  is spread evenly;
* windows: no report comes too late for its policy step; batches and reports are kept for good;
* bounds of sizes; channels and token counts are taken unseen; no objectives, no TLS, no roles;
* what probers and operators call is UNIMPLEMENTED.

To fork a process that serves takes a new grpcio: tried with 1.85, while with 1.80 and older
children fail or crash. Start workers with "spawn" there.
"""

from curriculum_client.testing._fake import FakeCurriculum

__all__ = ["FakeCurriculum"]
