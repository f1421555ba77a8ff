"""`curriculum boundary`: what was compared, how it changed, and whether that is beyond chance."""

from __future__ import annotations

import pytest

from curriculum_api.v1 import stats_pb2
from curriculum_operator.boundary import verdict
from tests.operator.examples import point


def test_a_boundary_shows_changes_and_a_verdict(curriculum, service, busy_run):
    service.points = [point(1, 0.3, 0.5), point(8, 0.6, 0.5, prompt_count=1600)]
    command = ("boundary", busy_run, "--before", "0:9", "--after", "100:184", "--k", "1,8")
    shown = curriculum.ok(*command)
    for said in ("+0.200", "-0.100", "Looks like sharpening", "steps 100–184", "±0.025"):
        assert said in shown
    found = curriculum.json(*command)
    assert found["verdict"] == "sharpened"
    assert [p["k"] for p in found["points"]] == [1, 8]


def test_a_boundary_shows_the_steps_that_were_compared(curriculum, service, busy_run):
    service.points = [point(1, 0.3, 0.5), point(8, 0.5, 0.5)]
    service.compared = {
        "before": stats_pb2.StepRange(first_policy_step=0, last_policy_step=320),
        "after": stats_pb2.StepRange(first_policy_step=485, last_policy_step=520),
        "policy_step": 520,
    }
    command = ("boundary", busy_run, "--before", "0:50", "--after", "500:599")
    shown = " ".join(curriculum.ok(*command).split())
    for said in (
        "steps 0–320 steps 485–520 change",
        "--after 500:599 ends behind the run's newest step, 520.",
        "Compared were steps 0–320 for 0:50, steps 485–520 for 500:599.",
    ):
        assert said in shown
    found = curriculum.json(*command)
    assert found["before"] == {"first_policy_step": 0, "last_policy_step": 320}
    assert [note["note"] for note in found["notes"]] == ["not_over", "other_steps"]
    exact = curriculum.json("boundary", busy_run, "--before", "0:320", "--after", "485:520")
    assert exact["notes"] == []
    del service.compared["after"]
    shown = curriculum.ok("boundary", busy_run, "--before", "0:320", "--after", "600:700")
    assert "Nothing was counted in steps 600–700." in shown


def test_a_change_that_rounds_to_nothing_has_no_sign_and_no_arrow(curriculum, service, busy_run):
    service.points = [point(1, 0.5, 0.4999), point(8, 0.5, 0.5001)]
    shown = curriculum.ok("boundary", busy_run, "--before", "0:9", "--after", "100:184")
    assert shown.count("0.500   0.000") == shown.count("0.000") == 2
    assert not set("▲▼+-█") & set(shown.split("change")[1].split("\n\n")[0])


def test_the_help_of_boundary_says_that_old_windows_are_merged(curriculum):
    said = " ".join(curriculum.ok("boundary", "--help").split())
    assert "Old windows are merged" in said


@pytest.mark.parametrize(
    "args",
    [
        ["--before", "9:0", "--after", "1:2"],
        ["--before", "5", "--after", "1:2"],
        ["--before", "0:1", "--after", "-1:2"],
        ["--before", "0:1", "--after", "1:2", "--k", "0"],
        ["--before", "0:1", "--after", "1:2", "--k", "1025"],
        ["--before", "0:1", "--after", "1:2", "--k", "1,,2"],
    ],
)
def test_a_malformed_range_or_k_is_a_usage_error(curriculum, args):
    curriculum.error("boundary", "r", *args, code=2)


@pytest.mark.parametrize(
    ("points", "word"),
    [
        ([point(1, 0.3, 0.5), point(8, 0.6, 0.5)], "sharpened"),
        ([point(1, 0.3, 0.5), point(8, 0.6, 0.7)], "expanded"),
        ([point(1, 0.3, 0.3), point(8, 0.6, 0.7)], "expanded"),
        ([point(1, 0.3, 0.5), point(8, 0.6, 0.61)], "unclear"),
        ([point(1, 0.3, 0.31), point(8, 0.6, 0.61)], "unclear"),
        ([point(1, 0.3, 0.2), point(8, 0.6, 0.5)], "worse"),
        ([point(1, 0.3, 0.5)], "unclear"),
        ([point(1, 0.3, 0.5), point(8, 0, 0, prompt_count=0)], "unclear"),
        # Ten prompts stray by 0.32: far more than what was seen.
        ([point(1, 0.3, 0.5, 10), point(8, 0.6, 0.4, 10)], "unclear"),
        ([], "unclear"),
    ],
)
def test_a_verdict_is_given_only_beyond_chance(points, word):
    assert verdict(points).word == word
