"""Which prompts to sample from the reference policy."""

import numpy as np

from curriculum.arrays import Ints
from curriculum.model import Model
from curriculum.pool import Pool, Reason, Selection
from curriculum.probe_draft import ProbeBudget, ProbeDraft

REFERENCE_ATTEMPTS = 64
"""Of a prompt: whether training expands what a model can do shows at large k, and pass@k needs k
attempts at least."""


def select_references(
    model: Model, pool: Pool, budget: ProbeBudget, reference_N: Ints, sentinels_S: Ints
) -> Selection:
    """Free prompts that lack attempts of the reference policy, with as many as they lack.

    Sentinels first, a sample that nobody chose for its difficulty; then those with most attempts of
    later policies, which are of no use to the boundary without any to compare them with.

    Args:
        model: fitted on the same blocks.
        pool: with the leases of now.
        budget: what may be spent.
        reference_N: (N,) attempts of the reference policy so far.
        sentinels_S: see `sentinels`.
    """
    most = min(REFERENCE_ATTEMPTS, budget.rollout_budget)  # a small budget is for one in parts
    lacking_N = np.clip(REFERENCE_ATTEMPTS - reference_N, 0, most)
    is_sentinel_N = np.zeros(len(pool), bool)
    is_sentinel_N[sentinels_S] = True
    wanted_K = np.flatnonzero(
        pool.free_N & (lacking_N > 0) & (is_sentinel_N | (pool.attempts_N > 0))
    )
    wanted_K = wanted_K[np.lexsort((-pool.attempts_N[wanted_K], ~is_sentinel_N[wanted_K]))]
    draft = ProbeDraft(budget, len(pool))
    draft.take(wanted_K, lacking_N[wanted_K], Reason.REFERENCE)
    why = f"the others that are sampled have {REFERENCE_ATTEMPTS} attempts of the reference policy"
    return draft.finish(model, pool, why)
