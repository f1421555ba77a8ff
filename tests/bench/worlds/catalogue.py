"""The worlds, by name. Each differs from the first in what its note says."""

from __future__ import annotations

from tests.bench.worlds.learner import World

_UNIMODAL = ((1.0, -1.0, 1.8),)
_LARGE, _SMALL = 24_000, 1_200  # the run's batches hold 16,000 places

WORLDS: dict[str, World] = {
    "bimodal": World("half hopeless, a third mastered, features explain 30%"),
    "unimodal": World("one broad hill of difficulty", shape=_UNIMODAL),
    "no features": World("nothing is known of a prompt", shows_features=False, feature_share=0.0),
    "features 0": World("features that say nothing", feature_share=0.0, prompt_count=_LARGE),
    "features 30": World("features explain 30%, large pool", prompt_count=_LARGE),
    "features 60": World(
        "features explain 60%, large pool", feature_share=0.6, prompt_count=_LARGE
    ),
    "features 85": World(
        "features explain 85%, large pool", feature_share=0.85, prompt_count=_LARGE
    ),
    "one domain": World("a single domain", domain_count=1),
    "eight domains": World(
        "eight domains far apart, soon forgotten",
        domain_count=8,
        domain_spread=2.5,
        forgetting=0.01,
    ),
    "small pool": World("visited a dozen times", prompt_count=_SMALL, tiring=10.0),
    "thin edge": World(
        "one prompt in ten near the edge",
        shape=((0.55, -5.0, 1.2), (0.1, 0.0, 1.0), (0.35, 5.0, 1.2)),
    ),
    "nearly all hopeless": World(
        "few prompts are ever solved", shape=((0.85, -5.0, 1.5), (0.15, -0.5, 1.5))
    ),
    "nearly all mastered": World("a strong policy", shape=((0.8, 4.5, 1.5), (0.2, 0.0, 1.5))),
    "noisy verifier": World("2% false passes, 10% false fails", false_pass=0.02, false_fail=0.1),
    "graded": World("rewards are shares of four checks", graded=True),
    "old as good as new": World("a group may be trained on again without loss", reuse=1.0),
    "fast policy": World("pass rates move quickly", drift=0.08, own_gain=1.0),
}
