"""thompson: the peer MoPPS on this ledger."""

import numpy as np

from curriculum.arrays import Ints
from curriculum.strategies.base import Choice, Strategy


def choose_thompson(choice: Choice, rng: np.random.Generator) -> Ints:
    """Those whose sampled pass rate is nearest to 1/2, among random candidates.

    ``g_i ~ Beta(1 + S_i, 1 + F_i)``, then the smallest ``(g_i - 1/2)**2`` of
    ``candidate_ratio * count`` prompts.

    Source: MoPPS, Qu et al. (2025), arXiv 2507.04632, section 4; thu-rllab/MoPPS@a883f51.
    Differs: the counts are discounted per policy step, not per visit by lambda; candidates are
    drawn at random, not in the loader's order.
    """
    size = min(choice.config.candidate_ratio * choice.count, len(choice.candidates_C))
    candidates = rng.choice(choice.candidates_C, size, replace=False, shuffle=False)
    successes, failures = choice.pool.successes_N[candidates], choice.pool.failures_N[candidates]
    distance = np.abs(rng.beta(1.0 + successes, 1.0 + failures) - 0.5)
    return candidates[np.argpartition(distance, choice.count - 1)[: choice.count]]


THOMPSON = Strategy(choose=choose_thompson)
