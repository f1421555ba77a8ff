"""What is shown: that it fits, says what it should, and is JSON under --json."""

from __future__ import annotations

import itertools
import json

import pytest
from google.protobuf import json_format
from rich.cells import cell_len

from curriculum_api.v1 import stats_pb2
from curriculum_api.v1.operator_service_pb2 import GetPromptResponse
from curriculum_operator.render import bars
from curriculum_operator.render.rebin import rebinned
from curriculum_operator.render.words import clean, percent, short
from tests.operator.examples import point


@pytest.fixture
def filled(curriculum, math, write_lines) -> str:
    """A pool with names that are as awkward as the contract allows."""
    records = [
        {"id": "i" * 80 + str(n), "text": f"\x1b[31mred [bold]{n}" + "long " * 900, "answer": n}
        for n in range(14)
    ]
    curriculum.ok(
        "prompts", "add", math, write_lines(*records), "--domain", "[red]\x1b[2J" + "d" * 60
    )
    return math


COMMANDS = [
    ["stats", "busy"],
    ["boundary", "busy", "--before", "0:9", "--after", "100:1000000"],
    ["runs", "list"],
    ["runs", "show", "math"],
    ["prompts", "list", "math"],
    ["prompts", "show", "math", "i" * 80 + "13"],
]


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: " ".join(command[:2]))
def test_every_view_fits_80_columns_without_colour(curriculum, service, filled, busy_run, command):
    service.points = [point(1, 0.3, 0.5), point(8, 0.6, 0.5)]
    for env in ({}, {"NO_COLOR": "1"}):
        shown = curriculum.ok(*command, **env)
        assert "\x1b" not in shown
        assert max(cell_len(line) for line in shown.splitlines()) <= 80


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: " ".join(command[:2]))
def test_every_command_prints_one_document_under_json(
    curriculum, service, filled, busy_run, command
):
    service.points = [point(1, 0.3, 0.5)]
    assert isinstance(curriculum.json(*command), dict)
    assert json.loads(curriculum.ok("--json", *command)) == curriculum.json(*command)


def test_stats_show_the_numbers_that_matter(curriculum, busy_run):
    shown = curriculum.ok("stats", busy_run)
    for said in (
        "step 184 · timeline 1",
        "prompts 1,003,155   leased 256   attempts 12,345,670   passed 41%",
        "mixed groups 65%   last 5 windows 89%   newest window 92%   likely mixed 345,678",
        "math                          12.0k",
        "░ 50% ▒ 12% █ 26% ▓ 11%",
        "░ unseen   ▒ beyond   █ edge   ▓ mastered",
        "47% → 92%",
        "steps 0–184",
    ):
        assert said in shown
    # No group was completed from step 15 to 24: one character has none of its steps outside.
    assert "by step       steps 0–184, 3.7 to a character" in shown
    assert "▄▄▄▄▄·▅" in shown


def test_stats_say_when_the_pool_is_used_up(curriculum, service, busy_run):
    stats = service.runs[busy_run].stats
    assert "used up" not in curriculum.ok("stats", busy_run)
    assert curriculum.json("stats", busy_run)["notes"] == []
    stats.likely_mixed_prompt_count = stats.windows[-2].visited_prompt_count - 1
    # A pool smaller than a window takes, in which almost every group is mixed, is not used up.
    assert "used up" not in curriculum.ok("stats", busy_run)
    for window in stats.windows[-5:]:
        window.mixed_group_count = window.group_count // 2 - 1
    assert "The pool is used up: fewer prompts are likely mixed" in curriculum.ok("stats", busy_run)
    (note,) = curriculum.json("stats", busy_run)["notes"]
    assert note["note"] == "used_up"
    assert note["explanation"].endswith("Add others.")
    del stats.windows[1:]  # the first window is not over: what it takes is not known
    assert "used up" not in curriculum.ok("stats", busy_run)


def test_stats_say_when_nothing_passed(curriculum, service, busy_run):
    known = service.runs[busy_run]
    known.stats.attempt_count, known.stats.pass_count = 199, 0
    known.stats.likely_mixed_prompt_count = 0
    for window in known.stats.windows:
        window.mixed_group_count = window.pass_count = 0
    assert "look at the verifier" not in curriculum.ok("stats", busy_run)
    known.stats.attempt_count = 12_345
    shown = " ".join(curriculum.ok("stats", busy_run).split())
    assert "None of 12,345 attempts passed: look at the verifier, and at the run's pass_" in shown
    assert "used up" not in shown
    known.run.config.pass_threshold = 0.75
    (note,) = curriculum.json("stats", busy_run)["notes"]
    assert note["note"] == "nothing_passed"
    assert note["explanation"].endswith("the run's pass_threshold (0.75).")
    known.run.config.objective["reward"] = 1
    assert curriculum.json("stats", busy_run)["notes"] == []


def test_stats_of_a_run_with_an_objective_show_it_and_no_passes(curriculum, service, busy_run):
    known = service.runs[busy_run]
    known.run.config.objective["reward"] = 1
    shown = curriculum.ok("stats", busy_run)
    assert "objective –" in shown
    known.stats.mean_objective = 0.456
    for number, window in enumerate(known.stats.windows):
        window.mean_objective = number / 40
    shown = curriculum.ok("stats", busy_run)
    for said in ("objective 0.46", "prompts by believed objective", "0.00 → 0.90"):
        assert said in shown
    for meaningless in ("pass", "likely mixed"):
        assert meaningless not in shown


@pytest.mark.parametrize("width", [40, 60, 66, 72, 80, 140, 250])
def test_stats_keep_their_shape_at_any_width(curriculum, busy_run, width):
    shown = curriculum.ok("stats", busy_run, COLUMNS=str(width)).splitlines()
    assert max(map(cell_len, shown)) <= width
    if width >= 60:
        axis, ticks = next(
            (line, below)
            for line, below in itertools.pairwise(shown)
            if line.strip().startswith("0 └─")
        )
        assert ticks.split() == ["0", "0.25", "0.5", "0.75", "1"]
        assert len(axis.rstrip()) + 1 == len(ticks.rstrip())
    assert ("a-very-long-domain-name-indeed" in "\n".join(shown)) == (width > 80)


def test_stats_as_json_are_the_contracts_message(curriculum, service, busy_run):
    shown = curriculum.json("stats", busy_run)
    stats = service.runs[busy_run].stats
    parsed = json_format.ParseDict(shown, stats_pb2.RunStats(), ignore_unknown_fields=True)
    assert parsed == stats
    assert shown["prompt_count"] == stats.prompt_count
    assert shown["domains"][3]["bands"]["unseen_count"] == 0


def test_stats_of_an_empty_run_say_what_to_do(curriculum, service, math):
    assert "The pool is empty: curriculum prompts add math SOURCE" in curriculum.ok("stats", math)
    stats = service.runs[math].stats
    stats.prompt_count = stats.bands.unseen_count = 5
    stats.domains.add(domain="d", prompt_count=5, bands=stats.bands)
    stats.pass_rate_histogram.extend([0] * 10 + [5] + [0] * 9)
    shown = curriculum.ok("stats", math)
    assert "mixed groups –   likely mixed 0\n" in shown
    assert "No window has an attempt yet." in shown


def test_watching_does_not_go_with_json(curriculum, busy_run):
    assert "--watch" in curriculum.error("stats", busy_run, "--watch", "1", "--json", code=2)


def test_watching_shows_every_state_and_ends_on_ctrl_c(curriculum, busy_run, monkeypatch):
    naps = iter([None, None])

    def nap(_seconds):
        if next(naps, KeyboardInterrupt) is KeyboardInterrupt:
            raise KeyboardInterrupt

    monkeypatch.setattr("curriculum_operator.commands.stats.time.sleep", nap)
    assert curriculum.ok("stats", busy_run, "--watch", "5").count("step 184") == 3


def test_prompts_are_listed_by_domain_and_band_up_to_the_limit(curriculum, math, write_lines):
    records = [{"id": str(n), "text": "q", "domain": f"d{n % 2}"} for n in range(60)]
    curriculum.ok("prompts", "add", math, write_lines(*records))

    def listed(*args):
        found = curriculum.json("prompts", "list", math, *args)["prompts"]
        return [int(state["prompt_id"]) for state in found]

    assert listed() == list(range(50))
    assert listed("--limit", "13") == list(range(13))
    assert listed("--domain", "d1", "--limit", "99") == list(range(1, 60, 2))
    assert listed("--band", "edge") == list(range(2, 60, 4))
    assert "No such prompts." in curriculum.ok("prompts", "list", math, "--domain", "none")
    curriculum.error("prompts", "list", math, "--band", "unspecified", code=2)


def test_a_prompt_is_shown_with_belief_and_history(curriculum, service, math, write_lines):
    records = [
        {"id": str(n), "text": "Why?", "domain": "d", "tags": ["t"], "features": {"x": 2}, "a": 1}
        for n in range(8)
    ]
    curriculum.ok("prompts", "add", math, write_lines(*records))
    shown = curriculum.ok("prompts", "show", math, "7")
    for said in ("0.70 (0.50–0.90)", "30–34     6/8", "x=2", "Why?", '"a": 1'):
        assert said in shown
    head, *_, last = shown.split("mean reward")[1].split("\n\n")[0].splitlines()
    assert head.endswith(f"0{'1':>19}")  # the scale of the bars
    assert last.rstrip().endswith("  " + "█" * 15)
    narrow = curriculum.ok("prompts", "show", math, "7", COLUMNS="60")
    assert "█" not in narrow
    assert max(map(cell_len, narrow.splitlines())) <= 60
    as_json = curriculum.json("prompts", "show", math, "7")
    assert as_json["state"]["band"] == "BAND_MASTERED"
    assert as_json["state"]["lease_expire_time"] is None
    assert json_format.ParseDict(as_json, GetPromptResponse()).prompt.text == "Why?"
    assert "no such prompt" in curriculum.error("prompts", "show", math, "none")


def test_a_prompt_of_a_run_with_an_objective_shows_no_passes(
    curriculum, service, math, write_lines
):
    config = service.runs[math].run.config
    config.objective["reward"], config.reward_min, config.reward_max = 1, -1, 1
    records = [{"id": str(n), "text": "Why?", "domain": "d"} for n in range(8)]
    curriculum.ok("prompts", "add", math, write_lines(*records))
    shown = curriculum.ok("prompts", "show", math, "7")
    assert "objective  0 ··" in shown
    assert "attempts     56 " in shown
    assert "pass" not in shown
    head, *_, last = shown.split("mean reward")[1].split("\n\n")[0].splitlines()
    assert head.endswith(f"-1{'1':>18}")
    assert last.rstrip().endswith(" " + "█" * 18)  # a mean reward of .75 is at .875 of the range
    listed = curriculum.ok("prompts", "list", math)
    assert "objective" in listed
    assert "pass" not in listed


def test_bars_fill_their_width_and_hide_nothing():
    bands = stats_pb2.BandCounts(
        unseen_count=1_000_000, beyond_count=1, edge_count=1, mastered_count=0
    )
    assert bars.band_bar(bands, 20).plain == "░" * 18 + "▒" + "█"
    assert bars.band_bar(stats_pb2.BandCounts(), 20).plain == ""
    assert bars.sparkline([0, None, 0.5, 1]).plain == "▁·▅█"
    assert bars.interval_bar(0.2, 0.5, 0.7, 10).plain == "··━━━●━━··"
    assert bars.interval_bar(0, 1, 1, 10).plain == "━━━━━━━━━●"


def test_a_window_takes_as_much_room_as_its_steps():
    spans, halves = [(0, 0), (1, 8), (9, 9), (12, 13)], [(1, 2), (8, 8), (0, 2), (2, 8)]
    # By step: 1/2 at 0; 1 each at 1 to 8; 0 at 9; nothing at 10 and 11; 1 of 4 at 12 and 13.
    each = [0.5, *[1.0] * 8, 0.0, None, None, 0.25, 0.25]
    assert rebinned(spans, halves, 50) == each
    assert rebinned(spans, halves, 14) == each
    # Seven stretches of two steps, weighed by what was counted: (1 + 1)/(2 + 1), …
    assert rebinned(spans, halves, 7) == pytest.approx([2 / 3, 1, 1, 1, 1 / 3, None, 0.25])
    # Four of three and a half steps: the second is 3.5 to 7, all of one window.
    assert rebinned(spans, halves, 4)[1] == 1.0
    assert rebinned([(5, 5)], [(0, 0)], 50) == [None]


def test_a_histogram_shows_the_smallest_bin_and_shades_the_unvisited():
    rows = [row.plain for row in bars.histogram([1600, 1, 800], [800, 0, 0])]
    assert rows[0] == "░░       "
    assert rows[4] == "██    ░░ "
    assert rows[7] == "██ ░░ ░░ "


def test_numbers_are_short_and_honest():
    assert [short(n) for n in (0, 9999, 10_000, 999_999, 2_500_000, 10**12)] == [
        *("0", "9,999", "10.0k", "1000k", "2.5M", "1.0T")
    ]
    assert [percent(x) for x in (None, 0, 0.001, 0.5, 0.999, 1)] == [
        *("–", "0%", "<1%", "50%", ">99%", "100%")
    ]
    assert clean("a\x1b[2J\u202eb\n\tc") == "a�[2J�b\n\tc"
