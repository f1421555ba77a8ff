"""What selection sees and what it answers."""

from dataclasses import dataclass
from enum import IntEnum

from curriculum.arrays import Bools, Bytes, Floats, Ints
from curriculum.belief import Belief, posterior
from curriculum.errors import require
from curriculum.prior import Prior, fit_domain_prior


class Reason(IntEnum):
    """Why a prompt is in a batch."""

    EDGE = 1  # its groups are likely to be mixed
    EXPLORE = 2  # the same, but on less than one discounted attempt of evidence
    REVIEW = 3  # mastered: against forgetting
    REACH = 4  # beyond: with more attempts, in case it no longer is
    UNIFORM = 5  # its turn
    FILL = 6  # the rested prompts ran out
    PROBE = 7  # only to learn its pass rate


@dataclass(frozen=True)
class Pool:
    """The prompts of a run at one policy step.

    Attributes:
        successes_N: discounted passes, float64.
        failures_N: discounted fails, float64.
        attempts_N: attempts ever made, undiscounted, int64.
        domain_N: index into `domains`, int32.
        domains: names.
        last_served_step_N: policy step of the last serving, int64; -1 is never.
        free_N: not leased.
        policy_step: the step to which the counts are discounted.
    """

    successes_N: Floats
    failures_N: Floats
    attempts_N: Ints
    domain_N: Ints
    domains: tuple[str, ...]
    last_served_step_N: Ints
    free_N: Bools
    policy_step: int

    def __post_init__(self) -> None:
        for name in ("failures_N", "attempts_N", "domain_N", "last_served_step_N", "free_N"):
            shape = getattr(self, name).shape
            require(shape == self.successes_N.shape, name, shape, f"{self.successes_N.shape}")
        most = int(self.domain_N.max(initial=-1))
        require(most < len(self.domains), "domain_N", most, f"below {len(self.domains)} domains")

    def __len__(self) -> int:
        return len(self.successes_N)

    def fit_prior(self) -> Prior:
        """The prior of each domain on these counts; leases and servings do not matter."""
        counts = (self.successes_N, self.failures_N)
        return fit_domain_prior(*counts, self.domain_N, len(self.domains))

    def belief_at(self, indices_M: Ints, prior: Prior) -> Belief:
        """The belief over some prompts."""
        mean_M, concentration_M = prior.at(self.domain_N[indices_M])
        counts = (self.successes_N[indices_M], self.failures_N[indices_M])
        return posterior(*counts, mean_M, concentration_M)


@dataclass(frozen=True)
class Selection:
    """A composed batch, in serving order.

    Attributes:
        indices_B: distinct free prompts, int64.
        attempt_counts_B: attempts to spend on each, int64.
        reasons_B: uint8 of `Reason`.
        pass_rate_B: mean of the belief.
        pass_rate_low_B: lower end of its central 90% interval.
        pass_rate_high_B: upper end of its central 90% interval.
        shortfall: why it is smaller than asked, or "".
    """

    indices_B: Ints
    attempt_counts_B: Ints
    reasons_B: Bytes
    pass_rate_B: Floats
    pass_rate_low_B: Floats
    pass_rate_high_B: Floats
    shortfall: str
