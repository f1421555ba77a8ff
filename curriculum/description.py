"""What is known of prompts before anybody attempted them."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from curriculum.arrays import Ints, Reals
from curriculum.errors import require


@dataclass(frozen=True)
class Descriptions:
    """M prompts, column by column.

    Attributes:
        texts: what the model is shown, in UTF-8.
        attributes: finite numbers by name; each prompt has those that are known of it.
        tags: labels.
        embeddings: (E,) each, finite, all of one length; None where there is none.
    """

    texts: Sequence[bytes]
    attributes: Sequence[Mapping[str, float]]
    tags: Sequence[Collection[str]]
    embeddings: Sequence[Reals | None]

    def __post_init__(self) -> None:
        for name in ("attributes", "tags", "embeddings"):
            count = len(getattr(self, name))
            require(count == len(self.texts), f"len({name})", count, f"{len(self.texts)}")
        lengths = {len(vector) for vector in self.embeddings if vector is not None}
        require(len(lengths) <= 1, "lengths of embeddings", sorted(lengths), "equal")

    def __len__(self) -> int:
        return len(self.texts)

    def read(self, indices_M: Ints) -> "Descriptions":
        """Those prompts."""
        rows = indices_M.tolist()
        return Descriptions(*([column[row] for row in rows] for column in self._columns))

    @property
    def _columns(self) -> tuple[Sequence[Any], ...]:
        return self.texts, self.attributes, self.tags, self.embeddings


class PromptSource(Protocol):
    """Prompts that can be read by index, so that a large pool is never described all at once."""

    def __len__(self) -> int:
        """How many there are."""

    def read(self, indices_M: Ints) -> Descriptions:
        """Those prompts, in that order."""
