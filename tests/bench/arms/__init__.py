"""The methods compared, by name. A new one: a file and a line.

Each file states its source; numbers marked [P] were read in a paper, [U] are not verified, all
others are the authors' own code. Batch sizes are scaled to the benchmark's.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np

from tests.bench.arms.adarft import Adarft
from tests.bench.arms.base import Arm, CheatingError, Groups, Rollouts, Task
from tests.bench.arms.dapo import Dapo
from tests.bench.arms.dots import Dots
from tests.bench.arms.edge import GREEDY, Edge
from tests.bench.arms.greso import Greso
from tests.bench.arms.mopps import Mopps
from tests.bench.arms.oracle import Oracle
from tests.bench.arms.pcl import Pcl
from tests.bench.arms.prime_rl import PrimeRl, PrimeRlDecayed
from tests.bench.arms.probed import Probed
from tests.bench.arms.sec import Sec
from tests.bench.arms.speed import Speed
from tests.bench.arms.uniform import Uniform

Build = Callable[[Task, np.random.Generator], Arm]

MOPPS: dict[str, Build] = {
    f"mopps_{decay:g}": partial(Mopps, decay=decay) for decay in (0.3, 0.5, 0.7, 0.85, 1.0)
}
"""For each lambda: the authors use 1 and .5."""

PEERS: dict[str, Build] = {
    "uniform": Uniform,
    "dapo": Dapo,
    "speed": Speed,
    **MOPPS,
    "greso": Greso,
    "dots": Dots,
    "adarft": Adarft,
    "pcl": Pcl,
    "sec": Sec,
    "prime_rl": PrimeRl,
    "prime_rl_3262": PrimeRlDecayed,
}

PRODUCT: dict[str, Build] = {"edge": Edge, "edge_greedy": partial(Edge, config=GREEDY)}
"""As a run has it by default, and with softening, rest, wear and reserves off; both learn how much
of a batch each domain gets."""

PROBED: dict[str, Build] = {
    "edge_spare": partial(Probed, share=1.0, on_spare_capacity=True),
    "edge_spare_2": partial(Probed, share=2.0, on_spare_capacity=True),
    "edge_charged": partial(Probed, share=1 / 8, on_spare_capacity=False),
}
"""The product with a prober beside it: as many rollouts as the trainer makes, or twice as many, on
GPUs that nothing else is done with; and an eighth as many, which are charged."""

__all__ = [
    "GREEDY",
    "MOPPS",
    "PEERS",
    "PROBED",
    "PRODUCT",
    "Adarft",
    "Arm",
    "Build",
    "CheatingError",
    "Dapo",
    "Dots",
    "Edge",
    "Greso",
    "Groups",
    "Mopps",
    "Oracle",
    "Pcl",
    "PrimeRl",
    "PrimeRlDecayed",
    "Probed",
    "Rollouts",
    "Sec",
    "Speed",
    "Task",
    "Uniform",
]
