"""How the places that are not reserved are filled, by name. A new strategy: a file and a line."""

from curriculum.strategies.base import Strategy
from curriculum.strategies.edge import EDGE
from curriculum.strategies.thompson import THOMPSON
from curriculum.strategies.uniform import UNIFORM

STRATEGIES: dict[str, Strategy] = {"edge": EDGE, "thompson": THOMPSON, "uniform": UNIFORM}

__all__ = ["STRATEGIES", "Strategy"]
