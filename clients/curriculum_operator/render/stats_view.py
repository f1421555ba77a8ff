"""The state of a run on one screen."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from curriculum_api.v1.stats_pb2 import DomainStats, RunStats, WindowStats
from curriculum_operator.render import bars
from curriculum_operator.render.words import clean, percent, share, short, steps

RECENT_WINDOWS = 5
_MAX_SPARKLINE = 50
_USED_UP = "The pool is used up: fewer prompts are likely mixed than a window takes. Add others."
_FIXED_COLUMNS = 52
"""What the table of domains needs beside the bar."""


def stats_view(run_id: str, stats: RunStats, width: int) -> RenderableType:
    """Fits `width` columns, at least 80."""
    parts: list[RenderableType] = [_header(run_id, stats), Text()]
    if not stats.prompt_count:
        parts.append(Text(f"The pool is empty: curriculum prompts add {run_id} SOURCE", "yellow"))
        return Group(*parts)
    parts += [_domains(stats, max(20, min(60, width - _FIXED_COLUMNS))), Text()]
    parts += [_histogram(stats), Text()]
    parts.append(_windows(list(stats.windows)[-_MAX_SPARKLINE:]))
    return Group(*parts)


def _header(run_id: str, stats: RunStats) -> RenderableType:
    table = Table.grid(expand=True)
    table.add_column(no_wrap=True, overflow="ellipsis")
    table.add_column(justify="right", no_wrap=True)
    table.add_row(
        Text(clean(run_id), "bold"),
        f"step {stats.policy_step:,} · timeline {stats.timeline}",
    )
    numbers = _labelled(
        ("prompts", f"{stats.prompt_count:,}"),
        ("leased", f"{stats.leased_prompt_count:,}"),
        ("attempts", f"{stats.attempt_count:,}"),
        ("passed", percent(share(stats.pass_count, stats.attempt_count))),
    )
    recent = list(stats.windows)[-RECENT_WINDOWS:]
    mixed = _labelled(
        ("mixed groups", percent(share(stats.mixed_group_count, stats.group_count))),
        (f"last {len(recent)} windows", percent(_mixed(recent))),
        ("newest window", percent(_mixed(recent[-1:]))),
        ("likely mixed", f"{stats.likely_mixed_prompt_count:,}"),
    )
    parts: list[RenderableType] = [table, numbers, mixed]
    if _is_used_up(stats):
        parts.append(Text(_USED_UP, "yellow"))
    return Group(*parts)


def _is_used_up(stats: RunStats) -> bool:
    """Whether what is left to train on would not fill another window."""
    if len(stats.windows) < 2:
        return False
    last_full = stats.windows[-2]
    return stats.likely_mixed_prompt_count < last_full.visited_prompt_count


def _labelled(*pairs: tuple[str, str]) -> Text:
    parts = [Text.assemble((f"{label} ", "bright_black"), value) for label, value in pairs]
    return Text("   ").join(parts)


def _domains(stats: RunStats, bar_width: int) -> RenderableType:
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False, header_style="bright_black")
    table.add_column("domain", max_width=16, overflow="ellipsis", no_wrap=True)
    table.add_column("prompts", justify="right", no_wrap=True)
    table.add_column("bands", width=bar_width)
    for title in ("mean", "prior", "attempts"):
        table.add_column(title, justify="right", no_wrap=True)
    for domain in stats.domains:
        _domain_rows(table, domain, bar_width)
    if len(stats.domains) > 1:
        _add(table, Text("all", "bold"), stats.prompt_count, stats, bar_width, ("", ""))
    return Group(table, bars.band_legend())


def _domain_rows(table: Table, domain: DomainStats, bar_width: int) -> None:
    means = (f"{domain.mean_pass_rate:.2f}", f"{domain.prior_mean:.2f}")
    _add(table, Text(clean(domain.domain)), domain.prompt_count, domain, bar_width, means)


def _add(
    table: Table,
    name: Text,
    prompt_count: int,
    stats: DomainStats | RunStats,
    bar_width: int,
    means: tuple[str, str],
) -> None:
    bar = Text("\n").join([bars.band_bar(stats.bands, bar_width), bars.band_shares(stats.bands)])
    table.add_row(name, short(prompt_count), bar, *means, short(stats.attempt_count))


def _histogram(stats: RunStats) -> RenderableType:
    title = Text.assemble(
        ("prompts by believed pass rate   ", "bright_black"),
        ("█", bars.VISITED_STYLE),
        " attempted   ",
        ("░", bars.UNVISITED_STYLE),
        " not yet",
    )
    counts, visited = list(stats.pass_rate_histogram), list(stats.visited_pass_rate_histogram)
    visited += [0] * (len(counts) - len(visited))
    lines = [title]
    for number, row in enumerate(bars.histogram(counts, visited)):
        label = short(max(counts, default=0)) if number == 0 else ""
        lines.append(Text.assemble((f"{label:>6} ", "bright_black"), ("│", "bright_black"), row))
    span = 3 * len(counts)
    lines.append(Text(f"{0:>6} └{'─' * span}", "bright_black"))
    ticks = "".join(f"{tick:<{span // 4}}" for tick in ("0", "0.25", "0.5", "0.75"))
    lines.append(Text(f"{'':8}{ticks}1", "bright_black"))
    return Group(*lines)


def _windows(windows: Sequence[WindowStats]) -> RenderableType:
    if not windows:
        return Text("No window has an attempt yet.", "bright_black")
    table = Table.grid(padding=(0, 2, 0, 0))
    span = steps(windows[0].first_policy_step, windows[-1].last_policy_step)
    table.add_row(Text("by window", "bright_black"), Text(f"steps {span}", "bright_black"))
    mixed = [share(w.mixed_group_count, w.group_count) for w in windows]
    passed = [share(w.pass_count, w.attempt_count) for w in windows]
    for title, values, style in (("mixed groups", mixed, "green"), ("passed", passed, "cyan")):
        line = Text.assemble(bars.sparkline(values, style), f"  {_change(values)}")
        table.add_row(Text(title, "bright_black"), line)
    return table


def _change(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    if len(known) < 2:
        return percent(known[0]) if known else ""
    return f"{percent(known[0])} → {percent(known[-1])}"


def _mixed(windows: Sequence[WindowStats]) -> float | None:
    mixed = sum(window.mixed_group_count for window in windows)
    return share(mixed, sum(window.group_count for window in windows))
