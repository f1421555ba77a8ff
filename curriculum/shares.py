"""Shares of the domains in a batch: fixed, or learned from where the policy learns."""

from collections.abc import Mapping

import numpy as np

from curriculum.arrays import Floats
from curriculum.config import SelectionConfig
from curriculum.model import Model


def domain_shares(
    config: SelectionConfig, domains: tuple[str, ...], model: Model
) -> Mapping[str, float]:
    """The fixed shares, and what is learned of the rest.

    Of the places that no fixed share takes, `learned_shares` go to the other domains in proportion
    to their learning progress, as `learning_progress` has it; whoever comes first in the draw gets
    those that are left. Domains that are listed take their places first.
    """
    fixed = dict(config.domain_shares)
    others = [index for index, name in enumerate(domains) if name not in fixed]
    if not config.learned_shares or len(others) < 2:
        return fixed
    progress = learning_progress(model)[others]
    free = max(1.0 - sum(fixed.values()), 0.0) * config.learned_shares
    shares = free * progress / progress.sum()
    return fixed | {domains[i]: float(s) for i, s in zip(others, shares, strict=True)}


def learning_progress(model: Model) -> Floats:
    """How far each domain's logits move per policy step, either way, as of now.

    A domain in which nothing moves is learned or out of reach; one that falls is being forgotten
    and counts like one that rises. A tenth of the mean is left to each, so that one that has come
    to a standstill is still looked at.

    Source: Matiisen et al. (2020), IEEE Trans. Neural Netw. Learn. Syst. 31:3732-3740, absolute
    learning progress.
    Differs: the slope is that of the beliefs' motion, on prompts visited again.
    """
    moved_D = np.abs(model.dynamics.drift_WD[-1])
    floor = 0.1 * moved_D.mean() if moved_D.any() else 1.0
    progress: Floats = moved_D + floor
    return progress
