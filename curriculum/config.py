"""The configuration of selection: few knobs, every default with its reason."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from curriculum.errors import InvalidInputError, require
from curriculum.strategies import STRATEGIES


@dataclass(frozen=True)
class SelectionConfig:
    """How batches are composed. Refused when built if it makes no sense.

    Attributes:
        strategy: a name in `curriculum.strategies.STRATEGIES`.
        group_size: attempts per prompt, in [2, 1024]; 8 is the usual GRPO group.
        optimism: weight of what a group would teach about its prompt, against its chance of being
            mixed now, >= 0; 0 is greedy. Simulated learners spend the same at 4 and at 8.
        sharpness: exponent on the worth in the draw, >= 0; 0 is uniform. Chances of a mixed group
            are flat around 1/2, so small exponents hardly choose. Simulated learners need as many
            rollouts at 16 as at 32, 4% more at 8; a small transformer held out more at 4 and 8 than
            at 16, one seed each.
        rest_steps: policy steps between two servings of a prompt, >= 0; 0 is off. A short rest
            kept a real GRPO run from serving the same few hundred prompts for ever. It is cut short
            in a pool of which more than a quarter would rest.
        review_share: of mastered prompts in a batch, against forgetting; in [0, 1].
        reach_share: of `beyond` prompts, which are never learned if never sampled; in [0, 1].
        reach_chance: a reach prompt gets the attempts that show a pass with this chance, in (0, 1).
        reach_attempt_factor: though at most this many groups' attempts, >= 1. At 4 x 8 a pass
            rate of .05 shows a pass with a chance of .8 instead of .34.
        domain_shares: domain -> share of the batch; empty is no constraint. The rest is shared by
            the domains not listed, as the draw falls.
        edge_low: pass rate below which a prompt is `beyond`: fewer than a third of its groups
            of 8 are mixed.
        edge_high: the same for `mastered`.
        learned_shares: how far the shares of the domains not listed follow their learning
            progress, in [0, 1]; 0 leaves them to the draw. Simulated learners spend the same from 0
            to .9; a small transformer with nine domains held out .010 to .023 more with .9 in three
            pairs of runs of one seed.
        max_share: largest share of the attempts of the last `max_share_steps` that one prompt may
            have had to be served again, in (0, 1]; 1 is no cap.
        max_share_steps: policy steps over which that is counted, >= 1.
        wear_visits: visits of late, which fade over 100 steps, after which a group is worth half
            as much, >= 0; 0 is never. So many where logits move by .036 a step, as in a real GRPO
            run; k times fewer where they are seen to move k times as fast, for the larger the
            policy's steps, the sooner it knows a prompt by heart. A small transformer, which moves
            six times as fast, ended .02 below uniform on held-out prompts with 4 visits, and level
            with it or above with 1; simulated learners, twice as fast, spend 10% more with 1.
        token_weight: how much the tokens that a prompt's attempts are expected to take count
            against it, in [0, 1]; at 1 worth is per token.
        candidate_ratio: candidates per place of the strategy thompson, >= 1; 16 as in MoPPS.
    """

    strategy: str = "edge"
    group_size: int = 8
    optimism: float = 4.0
    sharpness: float = 16.0
    rest_steps: int = 5
    review_share: float = 0.01
    reach_share: float = 0.005
    reach_chance: float = 0.5
    reach_attempt_factor: int = 4
    domain_shares: Mapping[str, float] = field(default_factory=dict)
    edge_low: float = 0.05
    edge_high: float = 0.95
    learned_shares: float = 0.9
    max_share: float = 1.0
    max_share_steps: int = 100
    wear_visits: float = 8.0
    token_weight: float = 0.0
    candidate_ratio: int = 16

    def __post_init__(self) -> None:
        names = sorted(STRATEGIES)
        require(self.strategy in names, "strategy", self.strategy, f"one of {', '.join(names)}")
        for name in (entry.name for entry in fields(self) if entry.type is int):
            self._require(type(getattr(self, name)) is int, name, "a whole number")
        self._require(2 <= self.group_size <= 1024, "group_size", "in [2, 1024]")
        for name in ("optimism", "sharpness", "wear_visits", "edge_low", "edge_high"):
            require(_is_finite(getattr(self, name)), name, getattr(self, name), "a finite number")
        for name in ("optimism", "sharpness", "wear_visits", "rest_steps"):
            self._require(getattr(self, name) >= 0, name, ">= 0")
        for name in ("reach_attempt_factor", "candidate_ratio", "max_share_steps"):
            self._require(getattr(self, name) >= 1, name, ">= 1")
        for name in ("review_share", "reach_share", "learned_shares", "token_weight"):
            self._require(_is_share(getattr(self, name)), name, "in [0, 1]")
        self._require(_is_share(self.max_share) and self.max_share > 0, "max_share", "in (0, 1]")
        is_chance = _is_share(self.reach_chance) and 0 < self.reach_chance < 1
        self._require(is_chance, "reach_chance", "in (0, 1)")
        together = self.review_share + self.reach_share
        require(together <= 1.0, "review_share + reach_share", together, "in [0, 1]")
        self._require(0.0 < self.edge_low < 1.0, "edge_low", "in (0, 1)")
        self._require(self.edge_low < self.edge_high < 1.0, "edge_high", "in (edge_low, 1)")
        for domain, share in self.domain_shares.items():
            require(_is_share(share), f"domain_shares[{domain}]", share, "in [0, 1]")
        total = math.fsum(self.domain_shares.values())
        require(total <= 1.0 + 1e-9, "domain_shares", total, "shares that sum to at most 1")

    def _require(self, holds: bool, name: str, allowed: str) -> None:
        require(holds, name, getattr(self, name), allowed)

    @classmethod
    def from_mapping(cls, mapping: Mapping[str, Any]) -> "SelectionConfig":
        """Build from plain data such as TOML or JSON; a whole float counts as an int.

        Raises:
            InvalidInputError: an unknown key, a wrong type, or a value outside its range.
        """
        known = {entry.name: entry.type for entry in fields(cls)}
        for name in mapping:
            require(name in known, "key", name, f"one of {', '.join(known)}")
        values = dict(mapping)
        for name, value in values.items():
            if known[name] is int and isinstance(value, float) and value.is_integer():
                values[name] = int(value)
        if not isinstance(values.setdefault("domain_shares", {}), Mapping):
            raise InvalidInputError(f"domain_shares={values['domain_shares']!r}: must be a table")
        values["domain_shares"] = dict(values["domain_shares"])
        return cls(**values)

    def to_mapping(self) -> dict[str, Any]:
        """Plain data from which `from_mapping` builds an equal configuration."""
        values = {entry.name: getattr(self, entry.name) for entry in fields(self)}
        return {**values, "domain_shares": dict(self.domain_shares)}


def _is_finite(value: object) -> bool:
    return isinstance(value, int | float) and type(value) is not bool and math.isfinite(value)


def _is_share(value: Any) -> bool:
    return _is_finite(value) and 0.0 <= value <= 1.0
