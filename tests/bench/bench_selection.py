"""Processor time of selection, single thread; the last line is one JSON object.

Run: python tests/bench/bench_selection.py [--sizes 1000,100000,1000000]
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from curriculum import (
    Block,
    Model,
    Pool,
    ProbeBudget,
    SelectionConfig,
    classify_bands,
    compose_batch,
    credible_interval,
    select_probes,
    sentinels,
)

DOMAINS = ("code", "logic", "math", "science")
EDGE = SelectionConfig()
BATCH = 512
FEATURES = 24
# As the server sees 100 windows of 5 steps: eight that still take counts, before them 4, 4, 8, …
WINDOWS = (32, 16, 16, 8, 8, 4, 4, 2, 2, 1, 1, 1, 1, 1, 1, 1, 1)
STEPS = 5 * sum(WINDOWS)
CONFIGS = {
    "edge": EDGE,
    "plain": replace(EDGE, wear_visits=0.0, optimism=0.0),
    "max_share": replace(EDGE, max_share=0.001),
    "no_learned_shares": replace(EDGE, learned_shares=0.0),
    "domain_shares": replace(EDGE, domain_shares={"code": 0.4, "math": 0.4}),
    "token_weight": replace(EDGE, token_weight=1.0),
    "thompson": replace(EDGE, strategy="thompson"),
    "uniform": replace(EDGE, strategy="uniform"),
}


def median_ms(call: Callable[[], object], repeats: int) -> float:
    """Median processor time of a call after one to warm up."""
    call()
    times_s = []
    for _ in range(repeats):
        start = time.process_time()
        call()
        times_s.append(time.process_time() - start)
    return 1e3 * statistics.median(times_s)


def mature_pool(prompt_count: int, rng: np.random.Generator) -> Pool:
    """After 500 steps: every prompt visited some times, pass rates bimodal and moving; 2% leased,
    3% resting."""
    logit = rng.normal(-0.5, 2.5, prompt_count)
    blocks, step, tokens = [], 0.0, np.zeros(prompt_count, np.int64)
    for windows in WINDOWS:
        is_visited = rng.random(prompt_count) < 1.0 - 0.97**windows
        attempts = 8 * is_visited.astype(np.int64)
        passes = rng.binomial(attempts, 1.0 / (1.0 + np.exp(-logit)))
        blocks.append(Block(step + 2.5 * windows, attempts, passes))
        step += 5.0 * windows
        tokens += attempts * rng.integers(200, 800)
        logit += rng.normal(0.01 * 5.0 * windows, np.sqrt(0.0013 * 5.0 * windows), prompt_count)
    return Pool(
        blocks=tuple(blocks),
        attempts_N=np.sum([block.attempts_N for block in blocks], axis=0),
        domain_N=rng.integers(0, len(DOMAINS), prompt_count).astype(np.int32),
        domains=DOMAINS,
        last_served_step_N=rng.integers(0, STEPS, prompt_count),
        free_N=rng.random(prompt_count) > 0.02,
        policy_step=STEPS,
        tokens_N=tokens,
    )


def mastered(pool: Pool) -> Pool:
    """The same where every attempt passed."""
    blocks = tuple(replace(block, passes_N=block.attempts_N) for block in pool.blocks)
    return replace(pool, blocks=blocks)


def compose_ms(pool: Pool, model: Model, config: SelectionConfig, repeats: int) -> float:
    """One batch after another from the same pool."""
    rng = np.random.default_rng(1)
    return median_ms(lambda: compose_batch(model, pool, config, BATCH, rng), repeats)


def measure_pool(pool: Pool, repeats: int) -> dict[str, float]:
    """Everything that is timed for one pool, in milliseconds by name."""
    rng = np.random.default_rng(2)
    features = rng.normal(size=(len(pool), FEATURES)).astype(np.float16)
    described, solved = replace(pool, features_NK=features), mastered(pool)
    model, described_model, solved_model = pool.fit(), described.fit(), solved.fit()
    figures = {
        "fit": median_ms(pool.fit, 5),
        f"fit, {FEATURES} features": median_ms(described.fit, 5),
    }
    for name, config in CONFIGS.items():
        figures[f"select {name}"] = compose_ms(pool, model, config, repeats)
    figures[f"select edge, {FEATURES} features"] = compose_ms(
        described, described_model, EDGE, repeats
    )
    figures["select edge, all mastered"] = compose_ms(solved, solved_model, EDGE, repeats)
    fixed_S = sentinels(pool.domain_N, len(pool.domains), 0)
    budget = ProbeBudget(BATCH, BATCH)
    figures["probes"] = median_ms(
        lambda: select_probes(model, pool, SelectionConfig(), budget, fixed_S, rng), 3
    )
    figures["beliefs of all"] = median_ms(lambda: pool.beliefs(model), 3)
    belief = pool.beliefs(model)
    attempts_N = pool.attempts_N
    figures["bands of all"] = median_ms(lambda: classify_bands(belief, attempts_N, 0.05, 0.95), 5)
    some = (belief.alpha_N[:BATCH], belief.beta_N[:BATCH])
    figures["intervals of a batch"] = median_ms(lambda: credible_interval(*some), 100)
    return figures


def short(prompt_count: int) -> str:
    """1k, 100k, 1M."""
    if prompt_count % 1_000_000 == 0:
        return f"{prompt_count // 1_000_000}M"
    return f"{prompt_count // 1000}k" if prompt_count % 1000 == 0 else str(prompt_count)


def key(name: str, size: str) -> str:
    """``select_512_of_1M_ms`` of the defaults, ``select_512_of_1M_max_share_ms`` of others."""
    words = name.replace(",", "").split()
    if words[0] != "select":
        return "_".join([*words, "of", size, "ms"])
    extra = [word for word in words[1:] if word != "edge"]
    return "_".join(["select", str(BATCH), "of", size, *extra, "ms"])


def main() -> None:
    """Print every measurement."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", default="1000,100000,1000000")
    sizes = [int(size) for size in parser.parse_args().sizes.split(",")]
    rng, summary = np.random.default_rng(0), {}
    for prompt_count in sizes:
        print(f"{prompt_count:,} prompts, {len(WINDOWS)} blocks, batches of {BATCH}")
        pool = mature_pool(prompt_count, rng)
        for name, figure in measure_pool(pool, 100 if prompt_count < 1_000_000 else 20).items():
            print(f"  {name:<34}{figure:10.3f} ms")
            summary[key(name, short(prompt_count))] = round(figure, 3)
    print(json.dumps(summary))


if __name__ == "__main__":
    main()
