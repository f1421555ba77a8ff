"""What the tests of feeds do over and over."""

from __future__ import annotations

import json


def attempts_of(prompts, count=None):
    """A row per attempt: the leases, and as many passes as fails."""
    leases = [p.lease for p in prompts for _ in range(count or p.attempt_count)]
    return leases, [float(row % 2) for row in range(len(leases))]


def score(feed, prompts, **options):
    return feed.report(*attempts_of(prompts), **options)


def ids(prompts):
    return [prompt.prompt_id for prompt in prompts]


def asked(fake):
    """Batches by name, with the steps that they were asked for."""
    return [(batch.batch_id, batch.policy_step) for batch in fake.batches]


def train(feed, steps):
    """What was served in so many steps."""
    served = []
    for step in steps:
        batch = feed.next_batch()
        score(feed, batch, policy_step=step)
        served.append(ids(batch))
    return served


def through_json(feed):
    return json.loads(json.dumps(feed.state_dict()))
