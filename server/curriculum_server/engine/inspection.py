"""What operators see: statistics, prompts and the boundary."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from curriculum import (
    Band,
    Belief,
    Pool,
    classify_bands,
    credible_interval,
    expected_mixed,
    pass_at_k,
)
from curriculum_api.errors import InvalidRequestError, NotFoundError
from curriculum_server.engine.mirror import Mirror
from curriculum_server.engine.run import Run
from curriculum_server.store.columns import (
    ATTEMPTS,
    FIXED_POINT_SCALE,
    OBJECTIVE,
    PASSES,
    REWARD_EXCESS,
    TOKENS,
)
from curriculum_server.store.windows import Window

HISTOGRAM_BINS = 20

Counts = NDArray[np.int64]


@dataclass(frozen=True)
class Beliefs:
    """The whole pool as believed at the run's newest step."""

    mirror: Mirror
    pool: Pool
    belief: Belief
    bands_N: NDArray[np.uint8]
    prior_mean_D: NDArray[np.float64]
    prior_concentration_D: NDArray[np.float64]

    @property
    def leased_N(self) -> NDArray[np.bool_]:
        return ~self.pool.free_N


@dataclass(frozen=True)
class PromptState:
    """One prompt as believed now."""

    prompt_id: str
    domain: str
    band: Band
    pass_rate: float
    pass_rate_low: float
    pass_rate_high: float
    attempt_count: int
    pass_count: int
    last_served_step: int | None
    lease_expire_s: int | None


@dataclass(frozen=True)
class HistoryPoint:
    """One prompt in one window."""

    window: Window
    attempt_count: int
    pass_count: int
    mean_reward: float
    token_count: int


@dataclass(frozen=True)
class BoundaryPoint:
    """Mean pass@k in two ranges of steps over the prompts with k attempts in both."""

    k: int
    prompt_count: int
    before: float
    after: float


@dataclass(frozen=True)
class Boundary:
    """The points, and from which step to which was compared: whole windows, None without any."""

    points: list[BoundaryPoint]
    before: tuple[int, int] | None
    after: tuple[int, int] | None


async def believe(run: Run) -> Beliefs:
    """Everything believed now. Hold the run's lock from here to the last use."""
    await run.sync()
    mirror = run.mirror
    pool, model = await run.pool(mirror.policy_step)
    belief = pool.beliefs(model)
    selection = mirror.config.selection
    bands_N = classify_bands(belief, pool.attempts_N, selection.edge_low, selection.edge_high)
    size_D = np.bincount(pool.domain_N, minlength=len(pool.domains))
    prior_mean_D = np.bincount(pool.domain_N, pool.prior_means(model), len(pool.domains)) / size_D
    return Beliefs(mirror, pool, belief, bands_N, prior_mean_D, model.prior.concentration_D)


def band_counts(bands: NDArray[np.uint8]) -> Counts:
    """Prompts by band, in the order of `Band`."""
    return np.bincount(bands, minlength=len(Band))


def likely_mixed_count(beliefs: Beliefs) -> int:
    """Prompts of which a group is likelier mixed than not."""
    group_size = beliefs.mirror.config.selection.group_size
    return int(np.count_nonzero(expected_mixed(beliefs.belief, group_size) > 0.5))


def histogram(pass_rates: NDArray[np.float64]) -> Counts:
    """Prompts by pass rate, in equal bins over [0, 1]."""
    counts: Counts = np.histogram(pass_rates, HISTOGRAM_BINS, (0.0, 1.0))[0]
    return counts


def matching(beliefs: Beliefs, domain: str, band: Band | None) -> Counts:
    """Indices of the prompts in a domain ("" for all) and a band (None for all)."""
    wanted_N = np.ones(len(beliefs.pool), bool)
    if domain:
        names = beliefs.mirror.catalog.domains
        if domain not in names:
            raise NotFoundError(f"domain={domain!r}: must be one of {', '.join(names) or 'none'}")
        wanted_N &= beliefs.pool.domain_N == names.index(domain)
    if band is not None:
        wanted_N &= beliefs.bands_N == band
    return np.flatnonzero(wanted_N)


def prompt_states(beliefs: Beliefs, indices: Counts) -> Iterator[PromptState]:
    """The state of the prompts at the given indices."""
    mirror, belief = beliefs.mirror, beliefs.belief.take(indices)
    mean, (low, high) = belief.mean, credible_interval(belief.alpha_N, belief.beta_N)
    passes_N = mirror.total(PASSES)
    for row, index in enumerate(indices.tolist()):
        served = int(mirror.last_served_step_N[index])
        yield PromptState(
            prompt_id=mirror.catalog.ids[index],
            domain=mirror.catalog.domain(index),
            band=Band(beliefs.bands_N[index]),
            pass_rate=float(mean[row]),
            pass_rate_low=float(low[row]),
            pass_rate_high=float(high[row]),
            attempt_count=int(mirror.attempts_N[index]),
            pass_count=int(passes_N[index]),
            last_served_step=served if served >= 0 else None,
            lease_expire_s=int(mirror.lease_N[index]) if beliefs.leased_N[index] else None,
        )


def find_prompt(mirror: Mirror, prompt_id: str) -> int:
    """The prompt's index.

    Raises:
        NotFoundError: the pool has no such prompt.
    """
    index = mirror.catalog.index.get(prompt_id)
    if index is None:
        raise NotFoundError(f"prompt_id={prompt_id!r}: is not in the pool")
    return index


def mean_objective(mirror: Mirror, windows: Sequence[Window]) -> float | None:
    """Over the attempts of these windows, in [0, 1]; None without any, or without an objective."""
    attempts, objective = (
        sum(int(mirror.column(w.window, name).sum()) for w in windows)
        for name in (ATTEMPTS, OBJECTIVE)
    )
    if not mirror.config.objective or not attempts:
        return None
    return objective / FIXED_POINT_SCALE / attempts


def so_far(mirror: Mirror, window: Window) -> Window:
    """The window as far as the run has come in it."""
    last_step = min(window.last_step, max(window.first_step, mirror.policy_step))
    return replace(window, last_step=last_step)


def history(mirror: Mirror, index: int) -> list[HistoryPoint]:
    """The windows in which the prompt was attempted, oldest first."""
    points = []
    for window in mirror.windows:
        cells = {
            name: int(mirror.column(window.window, name)[index])
            for name in (ATTEMPTS, PASSES, REWARD_EXCESS, TOKENS)
        }
        attempts, passes = cells[ATTEMPTS], cells[PASSES]
        if attempts:
            position = (passes + cells[REWARD_EXCESS] / FIXED_POINT_SCALE) / attempts
            low, high = mirror.config.reward_min, mirror.config.reward_max
            reward = low + position * (high - low)
            shown = so_far(mirror, window)
            points.append(HistoryPoint(shown, attempts, passes, reward, cells[TOKENS]))
    return points


def compare_boundary(
    mirror: Mirror, before: tuple[int, int], after: tuple[int, int], ks: Sequence[int]
) -> Boundary:
    """pass@k in two ranges of steps; windows count where they overlap a range.

    Raises:
        InvalidRequestError: a range that ends before it begins, or ranges that share a window.
    """
    ranges = [_overlapped(mirror, "before", before), _overlapped(mirror, "after", after)]
    _check_apart(mirror, before, after, [w for w in ranges[0] if w in ranges[1]])
    sums = [_counts(mirror, windows) for windows in ranges]
    attempts_before, attempts_after = (attempts for attempts, _ in sums)
    points = []
    for k in ks:
        both = (attempts_before >= k) & (attempts_after >= k)
        count = int(both.sum())
        rates = [
            float(pass_at_k(attempts[both], passes[both], k).mean()) if count else 0.0
            for attempts, passes in sums
        ]
        points.append(BoundaryPoint(k, count, *rates))
    return Boundary(points, *(_covered(mirror, windows) for windows in ranges))


def _overlapped(mirror: Mirror, name: str, ends: tuple[int, int]) -> list[Window]:
    first, last = ends
    if last < first:
        raise InvalidRequestError(
            f"{name}.last_policy_step={last}: must be at least first_policy_step={first}"
        )
    return [w for w in mirror.windows if w.first_step <= last and w.last_step >= first]


def _check_apart(
    mirror: Mirror, before: tuple[int, int], after: tuple[int, int], shared: Sequence[Window]
) -> None:
    if not shared:
        return
    widest = max(shared, key=lambda window: window.last_step - window.first_step)
    named = [
        "–".join(map(str, dict.fromkeys(ends)))
        for ends in (before, after, _covered(mirror, [widest]) or ())
    ]
    raise InvalidRequestError(
        f"before={named[0]}, after={named[1]}: must not share a window, and both have that of "
        f"steps {named[2]}; a window counts as a whole, and old ones are merged"
    )


def _covered(mirror: Mirror, windows: Sequence[Window]) -> tuple[int, int] | None:
    """From the first step of these windows to the last that the run has come to."""
    if not windows:
        return None
    return windows[0].first_step, so_far(mirror, windows[-1]).last_step


def _counts(mirror: Mirror, windows: Sequence[Window]) -> tuple[Counts, Counts]:
    """Attempts and passes, (N,) each."""
    return _count(mirror, windows, ATTEMPTS), _count(mirror, windows, PASSES)


def _count(mirror: Mirror, windows: Sequence[Window], name: str) -> Counts:
    """Of the reference policy all there are, whenever they were made."""
    parts = (mirror.column(w.window, name) if w.window else mirror.reference(name) for w in windows)
    return sum(parts, np.zeros(len(mirror.catalog), np.int64))
