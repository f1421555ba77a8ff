"""From the ledger's windows to discounted counts."""

from collections.abc import Sequence

import numpy as np

from curriculum.arrays import Floats, Ints
from curriculum.errors import InvalidInputError, require


def discount_weights(mid_steps_W: Floats | Ints, policy_step: int, discount: float) -> Floats:
    """How much an attempt of each window still says about the policy of today.

    ``weight_w = discount ** max(policy_step - mid_step_w, 0)``

    The policy is taken to forget at a constant rate per policy step, so a prompt that nobody visits
    becomes uncertain again by itself. A window at or after `policy_step` has weight 1.

    Differs: MoPPS (arXiv 2507.04632, eq. 8) discounts per visit, which never forgets the unvisited.

    Args:
        mid_steps_W: (W,) the middle policy step of each window.
        policy_step: the step whose policy is to be predicted.
        discount: per policy step, in (0, 1]; 1 never forgets.

    Returns:
        (W,) float64 in (0, 1].

    Raises:
        InvalidInputError: `discount` outside (0, 1].
    """
    require(0.0 < discount <= 1.0, "discount", discount, "in (0, 1]")
    age_W = policy_step - np.asarray(mid_steps_W, dtype=np.float64)
    weights: Floats = discount ** np.maximum(age_W, 0.0)
    return weights


def discounted_counts(
    attempts_WN: Sequence[Ints],
    passes_WN: Sequence[Ints],
    weights_W: Floats,
    indices_M: Ints | None = None,
) -> tuple[Floats, Floats]:
    """Discounted passes and fails per prompt, for the whole pool or for some prompts.

    ``S_i = sum_w weight_w passes_wi``,  ``F_i = sum_w weight_w (attempts_wi - passes_wi)``

    The windows are added one by one in the order given, element by element: a prompt gets the same
    bits whether it is computed alone or with the pool, so replicas and partial refreshes agree.

    Args:
        attempts_WN: W columns of (N,) attempts, any integer type.
        passes_WN: W columns of (N,) passes, at most the attempts.
        weights_W: (W,) from `discount_weights`.
        indices_M: (M,) prompts wanted; None means all N.

    Returns:
        successes and failures, float64, (N,) or (M,). Both are empty when there is no window and
        no `indices_M`, because the size of the pool is then unknown.

    Raises:
        InvalidInputError: lengths differ, or more passes than attempts.
    """
    windows = len(weights_W)
    require(len(attempts_WN) == windows, "attempts_WN", len(attempts_WN), f"{windows} columns")
    require(len(passes_WN) == windows, "passes_WN", len(passes_WN), f"{windows} columns")
    count = len(indices_M) if indices_M is not None else len(attempts_WN[0]) if windows else 0
    successes, failures = np.zeros(count), np.zeros(count)
    for weight, attempts, passes in zip(weights_W, attempts_WN, passes_WN, strict=True):
        if indices_M is not None:
            attempts, passes = attempts[indices_M], passes[indices_M]
        if attempts.shape != (count,) or passes.shape != (count,):
            raise InvalidInputError(f"column={attempts.shape}: must be ({count},), as the others")
        require(not np.any(passes > attempts), "passes_WN", "column", "at most the attempts")
        successes += float(weight) * passes
        failures += float(weight) * (attempts - passes)
    return successes, failures
