"""Time of selection, single thread. Run: python tests/bench/bench_selection.py"""

import statistics
import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from curriculum import (
    Pool,
    SelectionConfig,
    classify_bands,
    compose_batch,
    credible_interval,
    posterior,
)

DOMAINS = ("code", "logic", "math", "science")
EDGE = SelectionConfig()


def median_ms(call: Callable[[], object], repeats: int) -> float:
    """Median wall time of a call after one to warm up."""
    call()
    times_s = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        times_s.append(time.perf_counter() - start)
    return 1e3 * statistics.median(times_s)


def mature_pool(prompt_count: int, rng: np.random.Generator) -> Pool:
    """Every prompt visited, pass rates bimodal, 2% leased and 3% resting."""
    pass_rate = rng.beta(0.4, 0.4, prompt_count)
    attempts = 8 * rng.integers(1, 6, prompt_count)
    weight = rng.uniform(0.1, 1.0, prompt_count)
    passes = rng.binomial(attempts, pass_rate)
    return Pool(
        successes_N=weight * passes,
        failures_N=weight * (attempts - passes),
        attempts_N=attempts,
        domain_N=rng.integers(0, len(DOMAINS), prompt_count).astype(np.int32),
        domains=DOMAINS,
        last_served_step_N=rng.integers(0, 150, prompt_count),
        free_N=rng.random(prompt_count) > 0.02,
        policy_step=150,
    )


def report(name: str, call: Callable[[], object], repeats: int) -> None:
    """Print one line."""
    print(f"{name:<58}{median_ms(call, repeats):9.3f} ms")


def report_pool(pool: Pool, name: str, config: SelectionConfig, repeats: int) -> None:
    """Time the two halves of a selection of 512 and both together."""
    rng = np.random.default_rng(1)
    prior = pool.fit_prior()
    title = f"N={len(pool):,} B=512 {name}"
    report(f"{title}: fit_prior", pool.fit_prior, repeats)
    report(f"{title}: compose", lambda: compose_batch(prior, pool, config, 512, rng), repeats)

    def both() -> object:
        return compose_batch(pool.fit_prior(), pool, config, 512, rng)

    report(f"{title}: prepare + compose", both, repeats)


def report_beliefs(pool: Pool) -> None:
    """Time what is not part of a selection."""
    belief = posterior(pool.successes_N, pool.failures_N, *pool.fit_prior().at(pool.domain_N))
    attempts_N, title = pool.attempts_N, f"N={len(pool):,}:"
    report(f"{title} classify_bands", lambda: classify_bands(belief, attempts_N, 0.05, 0.95), 10)
    alpha_B, beta_B = belief.alpha_N[:512], belief.beta_N[:512]
    report("512 credible intervals", lambda: credible_interval(alpha_B, beta_B), 200)


def main() -> None:
    """Print every measurement."""
    rng = np.random.default_rng(0)
    configs = {
        "edge": EDGE,
        "edge, domain shares": SelectionConfig(domain_shares={"code": 0.4, "math": 0.4}),
        "thompson": SelectionConfig(strategy="thompson"),
        "uniform": SelectionConfig(strategy="uniform"),
    }
    for prompt_count, repeats in ((1_000, 200), (100_000, 200), (1_000_000, 20)):
        pool = mature_pool(prompt_count, rng)
        for name, config in configs.items():
            report_pool(pool, name, config, repeats)
        zeros_N = np.zeros(prompt_count)
        mastered = replace(pool, failures_N=zeros_N, successes_N=zeros_N + pool.attempts_N)
        report_pool(mastered, "edge, all mastered", EDGE, repeats)
        report_beliefs(pool)


if __name__ == "__main__":
    main()
