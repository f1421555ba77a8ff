"""A file that verl loads a reward function from."""

from typing import Any


def score(data_source: str, solution_str: str, ground_truth: Any, extra_info: Any) -> Any:
    """A reward function as verl calls it, with a channel beside the reward."""
    assert extra_info["prompt_id"] if "lease" in extra_info else data_source == "held-out"
    return {"score": float(solution_str == str(ground_truth)), "style": len(solution_str) / 10}
