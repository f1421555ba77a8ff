"""What the tests of feeds do over and over."""

from __future__ import annotations

import json
import os
import subprocess
import sys


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


def run_script(script, *arguments):
    """The lines that a process prints which imports the package itself."""
    inherited = {k: v for k, v in os.environ.items() if k != "GRPC_ENABLE_FORK_SUPPORT"}
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments],
        env={**inherited, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()
