"""A run's configuration."""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from curriculum import InvalidInputError, SelectionConfig
from curriculum_api.errors import InvalidRequestError, StateError
from curriculum_api.limits import MAX_CHANNELS, MAX_DOMAINS, MAX_SLOT_ATTEMPTS

CHANNEL_NAME = re.compile(r"[a-z0-9_]{1,64}")
MAX_LEASE_TTL_S = 7 * 24 * 3600
PROBE_LEASE_S = 120
"""Probers renew their leases all the time: one that was killed is to hold few prompts for long."""
MAX_SEED = 2**64 - 1
MAX_POLICY_LAG = 1_000_000
MAX_COMPLETION_TOKENS = 1_000_000
MAX_STOPS = 16
MAX_STOP_BYTES = 256
FIXED_FIELDS = ("reward_min", "reward_max", "pass_threshold", "seed", "channels", "objective")
"""What the ledger's counts depend on: set at creation only."""
LARGEST_SELECTION = {
    "optimism": 10.0,
    "sharpness": 64.0,
    "rest_steps": 1_000_000,
    "reach_attempt_factor": 64,
    "max_share_steps": 1_000_000,
    "wear_visits": 1_000_000.0,
    "candidate_ratio": 1024,
}
"""The contract's upper bounds, where the mathematics has none."""
RETIRED_SELECTION = {"discount": "how fast evidence is forgotten is learned from the ledger"}
"""Keys that runs of earlier versions hold, and why they are no more."""
REWARD = "reward"
"""What an objective calls the attempt's reward."""


@dataclass(frozen=True)
class ChannelConfig:
    """A named number that outcomes may carry, and its range."""

    name: str
    min_value: float
    max_value: float

    def __post_init__(self) -> None:
        if not CHANNEL_NAME.fullmatch(self.name):
            raise _refused("channels.name", repr(self.name), "1 to 64 characters of a-z, 0-9 and _")
        _check_range(f"channels[{self.name}].max_value", self.min_value, self.max_value)


@dataclass(frozen=True)
class SamplingConfig:
    """How the trainer samples completions, for probers to do the same; None is left to them."""

    temperature: float | None = None
    top_p: float | None = None
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    chat: bool | None = None

    def __post_init__(self) -> None:
        # Types too: a document may come from anywhere.
        if self.temperature is not None and not _is_finite(self.temperature, 0.0):
            raise _refused("sampling.temperature", self.temperature, "finite and at least 0")
        if self.top_p is not None and not (_is_finite(self.top_p, 0.0) and 0 < self.top_p <= 1):
            raise _refused("sampling.top_p", self.top_p, "in (0, 1]")
        if not (self.max_tokens is None or _is_whole(self.max_tokens, 1, MAX_COMPLETION_TOKENS)):
            raise _refused(
                "sampling.max_tokens", self.max_tokens, f"in [1, {MAX_COMPLETION_TOKENS}]"
            )
        if len(self.stop) > MAX_STOPS:
            raise _refused("sampling.stop", f"{len(self.stop)} texts", f"at most {MAX_STOPS}")
        for text in self.stop:
            size = len(text.encode(errors="replace"))
            if not 1 <= size <= MAX_STOP_BYTES:
                allowed = f"1 to {MAX_STOP_BYTES} bytes each"
                raise _refused("sampling.stop", f"{size} bytes", allowed)
        if not (self.chat is None or type(self.chat) is bool):
            raise _refused("sampling.chat", self.chat, "true or false")

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> SamplingConfig:
        stop = values.get("stop", ())
        if isinstance(stop, str):  # which is a sequence of texts too
            raise _refused("sampling.stop", repr(stop), "a list")
        return cls(**{**values, "stop": tuple(stop)})


@dataclass(frozen=True)
class RunConfig:
    """What a run is created with.

    Attributes:
        reward_min: smallest reward; verifiers usually answer 0 or 1.
        reward_max: largest reward.
        pass_threshold: an attempt passes from this reward on; by default only a full reward does.
        window_steps: policy steps whose counts are kept together; in 5 a logit moves by .08
            (standard deviation), sqrt(.0013 * 5), in a real GRPO trace.
        lease_ttl_s: a step of a large run takes minutes; an hour covers it with room.
        seed: every random choice derives from it and the request_id.
        objective: weights of the reward and of channels in what prompts are judged by, as given;
            empty is the pass.
        max_policy_lag: policy steps that a prober's weights may be behind; None for as many as
            reports may be late.
        sampling: how the trainer samples.
    """

    selection: SelectionConfig = field(default_factory=SelectionConfig)
    reward_min: float = 0.0
    reward_max: float = 1.0
    pass_threshold: float = 1.0
    window_steps: int = 5
    lease_ttl_s: int = 3600
    seed: int = 0
    channels: tuple[ChannelConfig, ...] = ()
    objective: Mapping[str, float] = field(default_factory=dict)
    max_policy_lag: int | None = None
    sampling: SamplingConfig = SamplingConfig()

    def __post_init__(self) -> None:
        _check_selection(self.selection)
        if not math.isfinite(self.reward_min):
            raise _refused("reward_min", self.reward_min, "finite")
        _check_range("reward_max", self.reward_min, self.reward_max)
        if not self.reward_min < self.pass_threshold <= self.reward_max:
            allowed = f"in ({self.reward_min:g}, {self.reward_max:g}]"
            raise _refused("pass_threshold", self.pass_threshold, allowed)
        if not 1 <= self.window_steps <= 100_000:
            raise _refused("window_steps", self.window_steps, "in [1, 100000]")
        if not 1 <= self.lease_ttl_s <= MAX_LEASE_TTL_S:
            raise _refused("lease_ttl", f"{self.lease_ttl_s}s", f"in [1s, {MAX_LEASE_TTL_S}s]")
        if not 0 <= self.seed <= MAX_SEED:
            raise _refused("seed", self.seed, f"in [0, {MAX_SEED}]")
        if not (self.max_policy_lag is None or _is_whole(self.max_policy_lag, 0, MAX_POLICY_LAG)):
            raise _refused("max_policy_lag", self.max_policy_lag, f"in [0, {MAX_POLICY_LAG}]")
        if len(self.channels) > MAX_CHANNELS:
            raise _refused("channels", f"{len(self.channels)} channels", f"at most {MAX_CHANNELS}")
        names = [channel.name for channel in self.channels]
        for name in names:
            if names.count(name) > 1:
                raise _refused("channels.name", repr(name), "declared once")
        _check_objective(self.objective, names)
        attempts = self.selection.group_size * self.selection.reach_attempt_factor
        if attempts > MAX_SLOT_ATTEMPTS:
            raise _refused("group_size*reach_attempt_factor", attempts, f"<= {MAX_SLOT_ATTEMPTS}")

    def objective_shares(self) -> list[tuple[str, float]]:
        """The objective's weights by name, in the order of names, with the sum 1.

        In one order, so that every server adds in it and gets the same to the last bit.
        """
        largest = max(self.objective.values(), default=1.0)
        weights = {name: self.objective[name] / largest for name in sorted(self.objective)}
        total = math.fsum(weights.values())
        return [(name, weight / total) for name, weight in weights.items()]

    @property
    def probe_lease_s(self) -> int:
        """How long a prober's lease lasts unless it is renewed."""
        return min(self.lease_ttl_s, PROBE_LEASE_S)

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> RunConfig:
        """From plain data; absent keys take the defaults, `pass_threshold` that of `reward_max`.
        Retired keys are dropped.

        Raises:
            InvalidRequestError: a value that is not allowed.
        """
        given = dict(values)
        selection = given.get("selection", {})
        try:
            given["selection"] = SelectionConfig.from_mapping(
                {name: selection[name] for name in selection if name not in RETIRED_SELECTION}
            )
        except InvalidInputError as error:
            raise InvalidRequestError(f"config.selection.{error}") from error
        given["sampling"] = SamplingConfig.from_mapping(given.get("sampling", {}))
        given["channels"] = tuple(ChannelConfig(**c) for c in given.get("channels", ()))
        given.setdefault("pass_threshold", given.get("reward_max", cls.reward_max))
        return cls(**given)

    def to_mapping(self) -> dict[str, Any]:
        """Plain data from which `from_mapping` builds an equal configuration."""
        return {**asdict(self), "selection": self.selection.to_mapping()}

    def updated(self, changes: Mapping[str, Any]) -> RunConfig:
        """This configuration with the given keys replaced.

        Raises:
            StateError: a key that is fixed at creation.
            InvalidRequestError: a value that is not allowed.
        """
        for name in FIXED_FIELDS:
            if name in changes:
                raise StateError(f"config.{name}={changes[name]!r}: is fixed when a run is created")
        selection = {**self.selection.to_mapping(), **changes.get("selection", {})}
        sampling = {**asdict(self.sampling), **changes.get("sampling", {})}
        parts = (*FIXED_FIELDS, "selection", "sampling")
        rest = {k: v for k, v in changes.items() if k not in parts}
        rest["sampling"] = SamplingConfig.from_mapping(sampling)
        try:
            return replace(self, selection=SelectionConfig.from_mapping(selection), **rest)
        except InvalidInputError as error:
            raise InvalidRequestError(f"config.selection.{error}") from error


def _check_selection(selection: SelectionConfig) -> None:
    for name, most in LARGEST_SELECTION.items():
        value = getattr(selection, name)
        if value > most:
            raise _refused(f"selection.{name}", value, f"at most {most:g}")
    if not selection.edge_low < 0.5 < selection.edge_high:
        below = selection.edge_low < 0.5
        name, allowed = ("edge_high", "above 0.5") if below else ("edge_low", "below 0.5")
        raise _refused(f"selection.{name}", getattr(selection, name), allowed)
    if len(selection.domain_shares) > MAX_DOMAINS:
        shown = f"{len(selection.domain_shares)} domains"
        raise _refused("selection.domain_shares", shown, f"at most {MAX_DOMAINS}")


def _check_objective(objective: Mapping[str, float], channels: Sequence[str]) -> None:
    if REWARD in objective and REWARD in channels:
        allowed = "another name: in the objective it is the attempt's reward"
        raise _refused("channels.name", repr(REWARD), allowed)
    for name, weight in objective.items():
        if name not in (REWARD, *channels):
            known = ", ".join((REWARD, *channels))
            raise _refused(f"objective[{name}]", weight, f"of the reward or a channel: {known}")
        if not _is_finite(weight, 0.0) or weight == 0:
            raise _refused(f"objective[{name}]", weight, "finite and above 0")


def _check_range(name: str, low: float, high: float) -> None:
    # Values come as float32, in which the ends must differ and be finite.
    with np.errstate(over="ignore"):
        ends = np.float32(low), np.float32(high)
    if not (np.isfinite(ends).all() and ends[0] < ends[1]):
        raise _refused(name, high, f"finite and above {low:g}, as float32")


def _is_finite(value: object, least: float) -> bool:
    """Whether it is a number that a float holds. A whole one of JSON may be larger than any."""
    return type(value) in (int, float) and least <= value <= sys.float_info.max  # type: ignore[operator]


def _is_whole(value: object, least: int, most: int) -> bool:
    return type(value) is int and least <= value <= most


def _refused(name: str, value: object, allowed: str) -> InvalidRequestError:
    return InvalidRequestError(f"config.{name}={value}: must be {allowed}")
