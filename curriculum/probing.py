"""Which prompts to sample only to learn their pass rate."""

import numpy as np

from curriculum.errors import require
from curriculum.model import Model
from curriculum.pool import Pool, Reason, Selection


def select_probes(
    model: Model,
    pool: Pool,
    prompt_count: int,
    attempt_count: int,
    rng: np.random.Generator,
) -> Selection:
    """The free prompts whose belief an attempt would move most.

    One more attempt at a prompt with belief Beta(a, b), n = a + b, is expected to reduce the
    variance of its pass rate by

        gain_i = Var[p_i] / (n_i + 1),   Var[p_i] = m_i (1 - m_i) / (n_i + 1)

    (the law of total variance over the attempt's result). Prompts at the edge with little recent
    evidence come first; ties, such as prompts never seen, fall at random.

    Args:
        model: fitted on the same blocks.
        pool: with the leases of now.
        prompt_count: B >= 0.
        attempt_count: attempts for each, at least 1.
        rng: breaks ties.

    Raises:
        InvalidInputError: a count out of range.
    """
    require(prompt_count >= 0, "prompt_count", prompt_count, ">= 0")
    require(attempt_count >= 1, "attempt_count", attempt_count, ">= 1")
    free_M = rng.permutation(np.flatnonzero(pool.free_N))
    belief = pool.beliefs(model, free_M)
    gain_M = belief.sd**2 / (belief.alpha_N + belief.beta_N + 1.0)
    chosen_B = np.argsort(-gain_M, kind="stable")[:prompt_count]
    served = len(chosen_B)
    return Selection.of(
        belief.take(chosen_B),
        free_M[chosen_B],
        attempt_counts_B=np.full(served, attempt_count),
        reasons_B=np.full(served, Reason.PROBE, dtype=np.uint8),
        shortfall=pool.shortfall(served, prompt_count - served),
    )
