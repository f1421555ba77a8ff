"""1,000 prompts of known pass rate, from a completions server's process to the beliefs.

Three processes: the server of completions, `curriculum-server` with its own Valkey, and
`curriculum-probe`. Every draw follows from a seed and the prompt, so with a fixed number of
attempts the counts are the same in every run; the chances below are those of another seed.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import binom

from curriculum_api.v1 import operator_service_pb2 as op
from curriculum_api.v1 import prompt_pb2, run_pb2
from tests.conftest import Stubs
from tests.probe.conftest import Process
from tests.probe.known_rates_server import ALONE, ALOUD
from tests.server.processes import ServerProcess

pytestmark = pytest.mark.slow

ENDPOINT = Path(__file__).with_name("known_rates_server.py")
SEED = 20
PROMPT_COUNT = 1000
EXTREME_COUNT = 20
"""Prompts that always fail, and as many that always pass."""
VISITS, ATTEMPTS = 4, 8
"""Of the worker to every prompt, and attempts at each: no more than a group, of which a worker has
no reason to leave some out."""
MOST_ATTEMPTS, MOST_IN_ALL = 4096, 50_000
"""Of one prompt and of the pool, where the server allots them."""
ALPHA = 1e-5
"""Chance that a check fails for nothing with another seed."""
TABLE_ERROR = 0.01
"""Of the ends of the server's intervals."""

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Probed:
    """All prompts of a pool, N of them, after a worker was done.

    Attributes:
        rate_N: the truth.
        drawn_N, right_N: completions handed out by the endpoint, and those that were right.
        attempts_N, passes_N: what the server counted.
        mean_N, low_N, high_N: what it believes, with its 90% interval.
    """

    rate_N: Floats
    drawn_N: Ints
    right_N: Ints
    attempts_N: Ints
    passes_N: Ints
    mean_N: Floats
    low_N: Floats
    high_N: Floats

    @property
    def is_extreme_N(self) -> NDArray[np.bool_]:
        return (self.rate_N == 0) | (self.rate_N == 1)


class Site:
    """The server, the endpoint, and the command that connects them."""

    def __init__(self, server: ServerProcess, endpoint_url: str, folder: Path) -> None:
        self._server, self._endpoint_url, self._folder = server, endpoint_url, folder
        self._stubs = Stubs(server.address)
        self._logs = 0

    def create(self, run_id: str) -> dict[str, float]:
        """A run of prompts; their pass rates by name, in the pool's order."""
        rng = random.Random(f"{SEED} {run_id}")
        rates = [0.0] * EXTREME_COUNT + [1.0] * EXTREME_COUNT
        rates += [round(rng.random(), 4) for _ in range(PROMPT_COUNT - 2 * EXTREME_COUNT)]
        rng.shuffle(rates)
        # Of one policy step each: time does not pass within a window.
        self._stubs.create_run(run_id, run_pb2.RunConfig(window_steps=1))
        prompts = [_prompt(number, rate, rng) for number, rate in enumerate(rates)]
        self._stubs.operator.AddPrompts(op.AddPromptsRequest(run_id=run_id, prompts=prompts))
        return {prompt.prompt_id: rate for prompt, rate in zip(prompts, rates, strict=True)}

    def probe(self, run_id: str, *options: object) -> str:
        """Run the command until it is through; what it logged."""
        self._logs += 1
        told = {"server": self._server.address, "run": run_id, "policy-step": 1, "model": "known"}
        told |= {"engine": "openai", "endpoint": self._endpoint_url, "verifier-processes": 2}
        arguments = [part for name, value in told.items() for part in (f"--{name}", str(value))]
        process = Process([*arguments, *map(str, options)], self._folder / f"log-{self._logs}")
        try:
            assert process.end() == 0, process.log
        finally:
            process.close()
        return process.log

    def read(self, run_id: str, rates: dict[str, float]) -> Probed:
        request = op.ListPromptsRequest(run_id=run_id, page_size=PROMPT_COUNT)
        states = list(self._stubs.operator.ListPrompts(request).prompts)
        assert [state.prompt_id for state in states] == list(rates)
        assert not any(state.HasField("lease_expire_time") for state in states)
        with urllib.request.urlopen(f"{self._endpoint_url}/tally") as response:
            tally = json.loads(response.read())
        drawn = np.array([tally.get(name, (0, 0)) for name in rates])
        return Probed(
            np.array(list(rates.values())),
            drawn[:, 0],
            drawn[:, 1],
            *(np.array([getattr(state, name) for state in states]) for name in _FIELDS),
        )

    def close(self) -> None:
        self._stubs.channel.close()


_FIELDS = ("attempt_count", "pass_count", "pass_rate", "pass_rate_low", "pass_rate_high")


def _prompt(number: int, rate: float, rng: random.Random) -> prompt_pb2.Prompt:
    """Every other one is judged by `numeric`, the rest by `exact`."""
    manner, verifier = ((ALOUD, "numeric"), (ALONE, "exact"))[number % 2]
    a, b = rng.randrange(100, 1000), 1000 + number
    text = f"What is {a} + {b}? {manner} (p={rate:.4f})"
    payload = json.dumps({"verifier": verifier, "answer": str(a + b)})
    return prompt_pb2.Prompt(prompt_id=text, domain=verifier, text=text, payload_json=payload)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("known")
    command = [sys.executable, str(ENDPOINT), str(SEED)]
    endpoint = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    flags = ("--data-dir", str(folder / "data"), "--listen", "127.0.0.1:0", "--metrics", "off")
    server = ServerProcess(*flags)
    try:
        server.wait_until_serving()
        made = Site(server, f"http://127.0.0.1:{int(endpoint.stdout.readline())}/v1", folder)
        yield made
        made.close()
    finally:
        server.close()
        endpoint.kill()
        endpoint.communicate()


@pytest.fixture(scope="module")
def fixed(site: Site) -> Probed:
    """Every prompt had as many attempts."""
    rates = site.create("fixed")
    for _ in range(VISITS):
        site.probe("fixed", "--prompts", PROMPT_COUNT, "--attempts", ATTEMPTS, "--once")
    return site.read("fixed", rates)


@pytest.fixture(scope="module")
def allotted(site: Site) -> Probed:
    """The server and the worker decided where attempts are worth making, and when to stop."""
    rates = site.create("allotted")
    site.probe("allotted", "--prompts", 100, "--rounds", 10)
    return site.read("allotted", rates)


@pytest.fixture(params=["fixed", "allotted"])
def probed(request: pytest.FixtureRequest) -> Probed:
    """Either of them."""
    return request.getfixturevalue(request.param)


def test_every_completion_is_verified_and_counted_once(probed: Probed) -> None:
    """What the server counted is what the endpoint knows that it has handed out."""
    np.testing.assert_array_equal(probed.attempts_N, probed.drawn_N)
    np.testing.assert_array_equal(probed.passes_N, probed.right_N)


def test_of_a_pool_that_nobody_has_seen_hardly_a_prompt_is_left_out(probed: Probed) -> None:
    """There is a budget of 25 attempts for each, and what was never tried is not settled."""
    assert (probed.attempts_N > 0).mean() > 0.9


def test_a_fixed_number_of_attempts_is_made_at_every_prompt(fixed: Probed) -> None:
    assert set(fixed.attempts_N) == {VISITS * ATTEMPTS}


def test_probed_pass_rates_agree_with_the_truth(probed: Probed) -> None:
    """Each prompt's passes lie in the binomial interval of its rate, those of 0 and 1 included.

    With n fixed, P(X < ppf(e/2)) < e/2 and P(X > isf(e/2)) <= e/2 for X ~ Binomial(n, p); over N
    prompts some one lies outside with a chance of at most N e, so e = alpha / N. Where n is chosen
    by how the attempts came out, the share that passed is biased and X is no binomial. But a
    prompt's completions are one sequence, of which after any number the passes are: with
    e = alpha / (N most) they are within the interval after each of up to `most` attempts, so also
    after the n that was chosen.
    """
    n_N, p_N = probed.attempts_N, probed.rate_N
    assert n_N.max() <= MOST_ATTEMPTS
    tries = 1 if len(set(n_N)) == 1 else MOST_ATTEMPTS
    low_N, high_N = binomial_interval(n_N, p_N, ALPHA / (PROMPT_COUNT * tries))
    outside_N = (probed.passes_N < low_N) | (probed.passes_N > high_N)
    assert not outside_N.any(), [*zip(n_N, p_N, probed.passes_N, strict=True)][outside_N.argmax()]
    assert not probed.passes_N[p_N == 0].any()
    assert (probed.passes_N == n_N)[p_N == 1].all()


def test_as_many_lie_outside_the_95_percent_interval_as_by_chance(fixed: Probed) -> None:
    """Neither more, for then rates are off, nor less, for then attempts are no draws.

    Passes are whole, so a prompt lies outside with a chance q_i below .05, which is computed. The
    number outside is a sum of N independent indicators, whose tails are at most those of
    Binomial(N, mean q): Hoeffding (1956), Ann. Math. Statist. 27:713-721, theorem 4.
    """
    n_N, p_N = fixed.attempts_N, fixed.rate_N
    low_N, high_N = binomial_interval(n_N, p_N, 0.05)
    chance_N = binom.cdf(low_N - 1, n_N, p_N) + binom.sf(high_N, n_N, p_N)
    outside_count = ((fixed.passes_N < low_N) | (fixed.passes_N > high_N)).sum()
    fewest, most = binomial_interval(PROMPT_COUNT, chance_N.mean(), ALPHA)
    assert fewest <= outside_count <= most


def test_in_all_as_many_pass_as_the_truth_says(probed: Probed) -> None:
    """However attempts are allotted, passes less what was expected of them is a martingale.

    Its steps are at most 1 and its variance is v = sum n_i p_i (1 - p_i) <= attempts / 4. Freedman
    (1975), Ann. Probab. 3:100-118: each side exceeds t with a chance of at most
    exp(-t^2 / (2v + 2t/3)), which is alpha / 2 at t = L/3 + sqrt(L^2/9 + 2 L v), where
    L = log(2 / alpha).
    """
    assert probed.attempts_N.sum() <= MOST_IN_ALL
    excess = probed.passes_N.sum() - (probed.attempts_N * probed.rate_N).sum()
    spread, variance = np.log(2 / ALPHA), MOST_IN_ALL / 4
    assert abs(excess) <= spread / 3 + np.sqrt(spread**2 / 9 + 2 * spread * variance)


def test_ninety_of_a_hundred_intervals_hold_the_truth(probed: Probed) -> None:
    """Wherever attempts were made: when to stop biases the share that passed, but no posterior.

    The rates were drawn from Beta(1, 1), and the prior is fitted to a thousand prompts, so each
    posterior's central 90% holds its rate with a chance of .9 over rates and draws, and the
    number that does is Binomial(960, .9): .9 +- .043 at 1 - alpha. Besides, both ends of an
    interval may be off by the table's error, where the density is phi(1.645) / sd = 1.5 for the
    usual sd of .07: together .03. Rates of exactly 0 and 1 are left out, which no beta posterior's
    interval can hold.
    """
    is_held_N = (probed.low_N <= probed.rate_N) & (probed.rate_N <= probed.high_N)
    is_held_M = is_held_N[~probed.is_extreme_N]
    fewest, most = binomial_interval(len(is_held_M), 0.9, ALPHA) / len(is_held_M)
    assert fewest - 3 * TABLE_ERROR <= is_held_M.mean() <= most + 3 * TABLE_ERROR


def test_prompts_that_always_fail_or_pass_are_believed_to_as_far_as_they_were_tried(
    probed: Probed,
) -> None:
    """After n fails Beta(1, 1) has become Beta(1, 1 + n), whose 95% quantile is 1 - .05^(1/(n+1)).

    The fitted prior has less weight than 2, which moves this by less than the table's error again.
    """
    furthest_N = 1 - 0.05 ** (1 / (probed.attempts_N + 1)) + 2 * TABLE_ERROR
    assert (probed.high_N <= furthest_N)[probed.rate_N == 0].all()
    assert (1 - probed.low_N <= furthest_N)[probed.rate_N == 1].all()


def test_beliefs_are_as_close_to_the_truth_as_can_be(fixed: Probed) -> None:
    """Under Beta(1, 1) the posterior mean after n attempts has a squared error of 1 / (6 (n + 2)).

    No estimate has less. The squares' relative sd is 1.6 (a normal's sqrt 2, and variances differ),
    .05 in the mean of a thousand: 4.4 of them are the bound.
    """
    error_M = (fixed.mean_N - fixed.rate_N)[~fixed.is_extreme_N]
    least = 1 / 6 / (VISITS * ATTEMPTS + 2)
    assert (1 - 4.4 * 0.05) * least <= np.square(error_M).mean() <= (1 + 4.4 * 0.05) * least


def binomial_interval(n: Any, p: Any, error: float) -> NDArray[np.float64]:
    """The passes that n attempts have but for a chance of `error`, half of it on each side."""
    return np.array([binom.ppf(error / 2, n, p), binom.isf(error / 2, n, p)])
