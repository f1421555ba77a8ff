"""Prompts as a list and one by one."""

from __future__ import annotations

import json
from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from curriculum_api.v1.operator_service_pb2 import GetPromptResponse
from curriculum_api.v1.prompt_pb2 import PromptHistoryPoint, PromptState
from curriculum_api.v1.run_pb2 import RunConfig
from curriculum_operator.messages import band_word
from curriculum_operator.render import bars
from curriculum_operator.render.words import NOTHING, clean, share, short, steps

MAX_TEXT = 2000
"""Characters of a text or payload shown; --json shows all."""

_SHOW_BAR = 50
_LIST_BAR = 10
_HISTORY_BAR = 20
_BESIDE_BELIEF = 35
_BESIDE_HISTORY = 58
"""Columns that the numbers take."""


def prompts_view(states: Sequence[PromptState], config: RunConfig, width: int) -> RenderableType:
    if not states:
        return Text("No such prompts.", "yellow")
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False, header_style="bright_black")
    # Ids are for copying, so they wrap rather than lose their end; generated ones fit.
    table.add_column("prompt", overflow="fold", min_width=12)
    table.add_column("domain", overflow="ellipsis", no_wrap=True, max_width=10)
    table.add_column("band", no_wrap=True)
    bar_width = max(_LIST_BAR, min(3 * _LIST_BAR, width - 70))
    is_graded = bool(config.objective)
    table.add_column("objective" if is_graded else "pass rate", no_wrap=True)
    for title in ("mean", "attempts" if is_graded else "passes"):
        table.add_column(title, justify="right", no_wrap=True)
    for state in states:
        bar = bars.interval_bar(
            state.pass_rate_low, state.pass_rate, state.pass_rate_high, bar_width
        )
        table.add_row(
            Text(clean(state.prompt_id)),
            Text(clean(state.domain)),
            _band(state),
            bar,
            f"{state.pass_rate:.2f}",
            ("" if is_graded else f"{short(state.pass_count)}/") + short(state.attempt_count),
        )
    return table


def prompt_view(response: GetPromptResponse, config: RunConfig, width: int) -> RenderableType:
    prompt, state = response.prompt, response.state
    parts: list[RenderableType] = [
        Text.assemble(
            (clean(prompt.prompt_id), "bold"), f"   {clean(prompt.domain)} · ", _band(state)
        ),
        _belief(state, "objective" if config.objective else "pass rate", width),
        Text(),
        _facts(response, is_graded=bool(config.objective)),
        Text(),
    ]
    if response.history:
        parts += [_history(response.history, config, width), Text()]
    parts.append(_panel("text", prompt.text))
    if prompt.payload_json:
        parts.append(_panel("payload", _pretty(prompt.payload_json)))
    return Group(*parts)


def _belief(state: PromptState, title: str, width: int) -> Text:
    bar_width = max(_LIST_BAR, min(_SHOW_BAR, width - _BESIDE_BELIEF))
    bar = bars.interval_bar(state.pass_rate_low, state.pass_rate, state.pass_rate_high, bar_width)
    numbers = f"{state.pass_rate:.2f} ({state.pass_rate_low:.2f}–{state.pass_rate_high:.2f})"
    return Text.assemble((f"{title}  ", "bright_black"), "0 ", bar, " 1  ", numbers)


def _facts(response: GetPromptResponse, *, is_graded: bool) -> RenderableType:
    prompt, state = response.prompt, response.state
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(style="bright_black", no_wrap=True)
    table.add_column(overflow="fold")
    passed = "" if is_graded else f", of which {state.pass_count:,} passed"
    table.add_row("attempts", f"{state.attempt_count:,}{passed}")
    table.add_row("last served", _served(state, "step "))
    if state.HasField("lease_expire_time"):
        table.add_row("leased until", f"{state.lease_expire_time.ToDatetime():%H:%M:%S} UTC")
    if prompt.tags:
        table.add_row("tags", Text(clean(", ".join(prompt.tags))))
    if prompt.features:
        features = (f"{name}={prompt.features[name]:g}" for name in sorted(prompt.features))
        table.add_row("features", Text(clean(", ".join(features))))
    return table


def _history(
    history: Sequence[PromptHistoryPoint], config: RunConfig, width: int
) -> RenderableType:
    """By window; in a run with an objective the bars are of rewards, on their range."""
    is_graded = bool(config.objective)
    outcome = ("attempts",) if is_graded else ("passes", "pass rate")
    low, high = (config.reward_min, config.reward_max) if is_graded else (0.0, 1.0)
    bar_width = min(_HISTORY_BAR, width - _BESIDE_HISTORY)
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bright_black")
    for title in ("steps", *outcome, "mean reward", "tokens"):
        table.add_column(title, justify="right", no_wrap=True)
    if bar_width >= _LIST_BAR:
        table.add_column(f"{low:g}{f'{high:g}':>{bar_width - len(f'{low:g}')}}", no_wrap=True)
    for point in history:
        rate = share(point.pass_count, point.attempt_count) or 0.0
        reward = point.mean_reward if point.HasField("mean_reward") else low
        position = (reward - low) / ((high - low) or 1.0) if is_graded else rate
        cells: list[str | Text] = [
            steps(point.first_policy_step, point.last_policy_step),
            *_outcome(point, is_graded=is_graded),
            f"{point.mean_reward:.3f}" if point.HasField("mean_reward") else NOTHING,
            short(point.token_count) if point.token_count else NOTHING,
        ]
        if bar_width >= _LIST_BAR:
            cells.append(Text("█" * round(bar_width * position), "cyan"))
        table.add_row(*cells)
    return table


def _outcome(point: PromptHistoryPoint, *, is_graded: bool) -> list[str]:
    if is_graded:
        return [f"{point.attempt_count}"]
    rate = share(point.pass_count, point.attempt_count)
    said = NOTHING if rate is None else f"{rate:.2f}"
    return [f"{point.pass_count}/{point.attempt_count}", said]


def _panel(title: str, text: str) -> RenderableType:
    left_out = len(text) - MAX_TEXT
    body = Text(clean(text[:MAX_TEXT]))
    if left_out > 0:
        body.append(f"\n… {left_out:,} more characters; --json shows all", "bright_black")
    return Panel(body, title=title, title_align="left", border_style="bright_black")


def _pretty(payload_json: str) -> str:
    try:
        return json.dumps(json.loads(payload_json), indent=2, ensure_ascii=False)
    except ValueError:
        return payload_json


def _band(state: PromptState) -> Text:
    word = band_word(state.band)
    return Text(word, bars.BAND_STYLES.get(word, ""))


def _served(state: PromptState, unit: str = "") -> str:
    return f"{unit}{state.last_served_step:,}" if state.HasField("last_served_step") else NOTHING
