"""A simulated learner. Axes: N prompts, D domains, T topics, H held-out prompts, M groups.

The logit of a prompt's pass rate is its ease plus what the learner has acquired:

    logit p_i = ease_i + ability[domain_i] + skill[topic_i] + own_i

Training on a group moves all three by its signal (see `Rollouts.trained`; the standard deviation
of the rewards, if the verifier is right), so a group that is not mixed moves nothing. Domains and
topics are what held-out prompts share with the pool; `own` is what is learned of a prompt alone. A
prompt that was trained on often of late passes less on, and a domain that is not trained is
forgotten.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from curriculum.arrays import Floats, Ints
from tests.bench.arms.base import Groups, Task

_HELD_OUT = 1500
_FEATURES, _TOPICS = 8, 16
# In logits per step in which every group has signal 1; a batch that is 40% mixed has about .14.
_ABILITY_GAIN, _SKILL_GAIN = 0.025, 0.0125
_LEVEL_OFFSETS = np.array([2.0, 1.0, 0.0, -1.0])  # of graded rewards: four checks, easy to hard

BIMODAL = ((0.45, -4.0, 1.5), (0.25, 0.0, 1.5), (0.30, 3.5, 1.5))


@dataclass(frozen=True)
class World:
    """A pool and a learner.

    Attributes:
        note: what is special about it.
        prompt_count: N.
        domain_count: D.
        shape: components of the ease: weight, mean, standard deviation, in logits.
        feature_share: of the variance of the ease (by rank) that the features explain.
        shows_features: whether arms see the features at all.
        domain_spread: half the distance between the easiest and the hardest domain, in logits.
        false_pass: probability that the verifier passes a wrong attempt.
        false_fail: probability that it fails a right one.
        graded: whether rewards are shares of four checks instead of 0 or 1.
        drift: standard deviation of a prompt's random walk per step, in logits.
        forgetting: share of a domain's ability lost per step in which it is not trained at all.
        own_gain: logits a prompt itself gains from a group of signal 1.
        tiring: recent visits after which a prompt passes on half as much.
        reuse: what a group teaches when it is trained on once more, of what it taught the time
            before, since its attempts are no longer the policy's. An assumption, to which methods
            with a buffer of old groups (dots) are sensitive, and they alone.
        batch_size: B.
        uniform_steps: steps of the run that sets the target.
    """

    note: str
    prompt_count: int = 8000
    domain_count: int = 4
    shape: tuple[tuple[float, float, float], ...] = BIMODAL
    feature_share: float = 0.3
    shows_features: bool = True
    domain_spread: float = 1.0
    false_pass: float = 0.0
    false_fail: float = 0.0
    graded: bool = False
    drift: float = 0.02
    forgetting: float = 0.003
    own_gain: float = 0.3
    tiring: float = 20.0
    reuse: float = 0.5
    batch_size: int = 64
    uniform_steps: int = 250


GROUP_SIZE = 8
_RECENT_STEPS = 100.0  # over which visits are remembered as recent


class Learner:
    """An `Environment` in which training changes the policy."""

    def __init__(self, world: World, rng: np.random.Generator) -> None:
        self._world, self._rng = world, rng
        count = world.prompt_count + _HELD_OUT
        latent = rng.standard_normal((count, _FEATURES))
        domain = rng.integers(0, world.domain_count, count)
        topic = np.argmax(latent @ rng.standard_normal((_FEATURES, _TOPICS)), axis=1)
        spread = np.linspace(-world.domain_spread, world.domain_spread, world.domain_count)
        level = spread[domain] if world.domain_count > 1 else np.zeros(count)
        ease = level + _ease(world, latent, rng)
        size = world.prompt_count
        self._domain_N, self._domain_H = domain[:size].astype(np.int32), domain[size:]
        self._topic_N, self._topic_H = topic[:size], topic[size:]
        self._ease_N, self._ease_H = ease[:size], ease[size:]
        self._ability_D, self._skill_T = np.zeros(world.domain_count), np.zeros(_TOPICS)
        self._own_N, self._recent_N = np.zeros(size), np.zeros(size)
        self._uses: dict[int, int] = {}
        features_NK = latent[:size] if world.shows_features else None
        self.task = Task(
            self._domain_N, world.domain_count, features_NK, world.batch_size, GROUP_SIZE
        )

    def policy_step(self, step: int) -> int:
        return step

    def true_pass_rate(self) -> Floats:
        return self._expected(self._logit(np.arange(len(self.task))))

    def held_out(self) -> float:
        """Mean true reward on prompts that are never trained on."""
        logit_H = self._ease_H + self._ability_D[self._domain_H] + self._skill_T[self._topic_H]
        return float(self._expected(logit_H).mean())

    def draw(self, index_M: Ints, attempts_M: Ints) -> Floats:
        logit_M = self._logit(index_M)
        if self._world.graded:
            return _draw_graded(logit_M, attempts_M, self._rng)
        right_M = self._rng.binomial(attempts_M, _sigmoid(logit_M))
        both_M = self._rng.binomial(right_M, 1.0 - self._world.false_fail)
        wrong_M = self._rng.binomial(attempts_M - right_M, self._world.false_pass)
        return np.stack([both_M + wrong_M, both_M + wrong_M, right_M, both_M], axis=1)

    def train(self, groups: Groups, signal_M: Floats) -> None:
        """The loss is a mean over attempts, so a group weighs as much as it has of them."""
        world, index_M = self._world, groups.index_M
        visits_M = groups.attempts_M / GROUP_SIZE
        taught_M = signal_M * visits_M * world.reuse ** self._used(groups)
        tired_M = 1.0 + self._recent_N[index_M] / world.tiring
        passed_on_M = taught_M / tired_M / world.batch_size
        self._recent_N *= 1.0 - 1.0 / _RECENT_STEPS
        np.add.at(self._recent_N, index_M, visits_M)
        np.add.at(self._own_N, index_M, world.own_gain * taught_M)
        self._own_N += world.drift * self._rng.standard_normal(len(self._own_N))
        domain_D = np.bincount(self._domain_N[index_M], passed_on_M, world.domain_count)
        topic_T = np.bincount(self._topic_N[index_M], passed_on_M, _TOPICS)
        untrained_D = _untrained(domain_D)
        self._ability_D -= world.forgetting * untrained_D * self._ability_D
        self._ability_D += _ABILITY_GAIN * world.domain_count * domain_D
        self._skill_T += _SKILL_GAIN * _TOPICS * topic_T

    def _used(self, groups: Groups) -> Ints:
        """How often each group was trained on before."""
        tickets = groups.ticket_M.tolist()
        used_M = np.array([self._uses.get(ticket, 0) for ticket in tickets], dtype=np.int64)
        self._uses.update(zip(tickets, (used_M + 1).tolist(), strict=True))
        return used_M

    def _logit(self, index_M: Ints) -> Floats:
        acquired_M = (
            self._ability_D[self._domain_N[index_M]] + self._skill_T[self._topic_N[index_M]]
        )
        return self._ease_N[index_M] + acquired_M + self._own_N[index_M]

    def _expected(self, logit_M: Floats) -> Floats:
        """The mean true reward of an attempt."""
        if self._world.graded:
            return _sigmoid(logit_M[:, None] + _LEVEL_OFFSETS).mean(axis=1)
        return _sigmoid(logit_M)


def _ease(world: World, latent: Floats, rng: np.random.Generator) -> Floats:
    """Draws of the shape, handed out in the order of a score that the features explain in part."""
    weight, mean, sd = np.array(world.shape).T
    component = rng.choice(len(weight), len(latent), p=weight)
    values = np.sort(rng.normal(mean[component], sd[component]))
    direction = rng.standard_normal(_FEATURES)
    explained = latent @ direction / np.linalg.norm(direction)
    noise = rng.standard_normal(len(latent))
    score = np.sqrt(world.feature_share) * explained + np.sqrt(1 - world.feature_share) * noise
    ease = np.empty(len(latent))
    ease[np.argsort(score)] = values
    return ease


def _draw_graded(logit_M: Floats, attempts_M: Ints, rng: np.random.Generator) -> Floats:
    """An attempt passes the checks that its luck, one logistic draw, carries it over."""
    group = np.repeat(np.arange(len(logit_M)), attempts_M)
    luck = logit_M[group] + rng.logistic(size=len(group))
    reward = (luck[:, None] + _LEVEL_OFFSETS > 0.0).mean(axis=1)
    total_M = np.bincount(group, reward, len(logit_M))
    square_M = np.bincount(group, reward * reward, len(logit_M))
    return np.stack([total_M, square_M, total_M, square_M], axis=1)


def _untrained(signal_D: Floats) -> Floats:
    """How far each domain is below an equal share of the signal, 0 to 1."""
    fair = signal_D.sum() / len(signal_D)
    return np.clip(1.0 - signal_D / fair, 0.0, 1.0) if fair > 0.0 else np.ones(len(signal_D))


def _sigmoid(logit: Floats) -> Floats:
    return 1.0 / (1.0 + np.exp(-logit))
