"""The mathematics of a curriculum at the edge of competence: belief, bands and selection.

Pure functions of their arguments: no clock, no I/O, no global random state.
"""

from curriculum.bands import Band, bands_settled, classify_bands
from curriculum.belief import Belief
from curriculum.beta import beta_cdf, beta_quantile
from curriculum.compose import compose_batch, warm_up
from curriculum.config import SelectionConfig
from curriculum.errors import InvalidInputError
from curriculum.evidence import Block
from curriculum.interval import credible_interval
from curriculum.mixed import mixed_probability, mixed_probability_at
from curriculum.model import Model, fit_model
from curriculum.pass_at_k import pass_at_k
from curriculum.pool import PROBE_REASONS, Pool, Reason, Selection
from curriculum.prior import Prior, fit_prior
from curriculum.probe_draft import ProbeBudget
from curriculum.probing import select_probes
from curriculum.reference import REFERENCE_ATTEMPTS, select_references
from curriculum.sentinels import sentinels
from curriculum.strategies import STRATEGIES
from curriculum.worth import expected_mixed

__all__ = [
    "PROBE_REASONS",
    "REFERENCE_ATTEMPTS",
    "STRATEGIES",
    "Band",
    "Belief",
    "Block",
    "InvalidInputError",
    "Model",
    "Pool",
    "Prior",
    "ProbeBudget",
    "Reason",
    "Selection",
    "SelectionConfig",
    "bands_settled",
    "beta_cdf",
    "beta_quantile",
    "classify_bands",
    "compose_batch",
    "credible_interval",
    "expected_mixed",
    "fit_model",
    "fit_prior",
    "mixed_probability",
    "mixed_probability_at",
    "pass_at_k",
    "select_probes",
    "select_references",
    "sentinels",
    "warm_up",
]
