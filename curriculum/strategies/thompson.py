"""thompson: the peer MoPPS on this ledger."""

import numpy as np

from curriculum.arrays import Ints
from curriculum.strategies.base import Choice, Strategy


def choose_thompson(choice: Choice, rng: np.random.Generator) -> Ints:
    """Those whose sampled pass rate is nearest to 1/2, among random candidates.

    ``g_i ~ Beta(a_i, b_i)``, then the smallest ``(g_i - 1/2)**2`` of ``candidate_ratio * count``
    prompts.

    Source: MoPPS, Qu et al. (2025), arXiv 2507.04632, section 4; thu-rllab/MoPPS@a883f51.
    Differs: the beliefs are this ledger's, with the pool's prior and motion; candidates are drawn
    at random, not in the loader's order.
    """
    size = min(choice.config.candidate_ratio * choice.count, len(choice.candidates_C))
    candidates = rng.choice(choice.candidates_C, size, replace=False, shuffle=False)
    belief = choice.pool.beliefs(choice.model, candidates)
    distance = np.abs(rng.beta(belief.alpha_N, belief.beta_N) - 0.5)
    return candidates[np.argpartition(distance, choice.count - 1)[: choice.count]]


THOMPSON = Strategy(choose=choose_thompson)
