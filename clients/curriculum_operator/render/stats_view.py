"""The state of a run on one screen."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from curriculum_api.v1.run_pb2 import RunConfig
from curriculum_api.v1.stats_pb2 import DomainStats, RunStats, WindowStats
from curriculum_operator.notes import RECENT_WINDOWS, mixed_share, stats_notes
from curriculum_operator.render import bars
from curriculum_operator.render.rebin import rebinned
from curriculum_operator.render.words import NOTHING, clean, percent, share, short, steps

_MAX_SPARKLINE = 50
_NARROW = 72
"""Below so many columns the priors are left out."""
_LEAST_BAR = 24
"""As wide as most bars' numbers, which stand below them."""
_MAX_BAR = 60

_Said = Callable[[float], str]


def stats_view(run_id: str, stats: RunStats, config: RunConfig, width: int) -> RenderableType:
    """Fits `width` columns; below 60 something is cut off."""
    parts: list[RenderableType] = [_header(run_id, stats, config, width), Text()]
    if not stats.prompt_count:
        parts.append(Text(f"The pool is empty: curriculum prompts add {run_id} SOURCE", "yellow"))
        return Group(*parts)
    parts += [_domains(stats, width), Text()]
    rate = "objective" if config.objective else "pass rate"
    if (histogram := _histogram(stats, rate, width)) is not None:
        parts += [histogram, Text()]
    parts.append(_windows(stats.windows, width, is_graded=bool(config.objective)))
    return Group(*parts)


def _header(run_id: str, stats: RunStats, config: RunConfig, width: int) -> RenderableType:
    table = Table.grid(expand=True)
    table.add_column(no_wrap=True, overflow="ellipsis")
    table.add_column(justify="right", no_wrap=True)
    table.add_row(
        Text(clean(run_id), "bold"),
        f"step {stats.policy_step:,} · timeline {stats.timeline}",
    )
    numbers = [
        ("prompts", f"{stats.prompt_count:,}"),
        ("leased", f"{stats.leased_prompt_count:,}"),
        ("attempts", f"{stats.attempt_count:,}"),
        _outcome(stats, config),
    ]
    mixed = [("mixed groups", percent(share(stats.mixed_group_count, stats.group_count)))]
    recent = stats.windows[-RECENT_WINDOWS:]
    if len(recent) > 1 and (latest := mixed_share(recent)) is not None:
        mixed.append((f"last {len(recent)} windows", percent(latest)))
        mixed.append(("newest window", percent(mixed_share(recent[-1:]))))
    if not config.objective:
        mixed.append(("likely mixed", f"{stats.likely_mixed_prompt_count:,}"))
    notes = [Text(note.explanation, "yellow") for note in stats_notes(stats, config)]
    return Group(table, _labelled(numbers, width), _labelled(mixed, width), *notes)


def _outcome(stats: RunStats, config: RunConfig) -> tuple[str, str]:
    if not config.objective:
        return "passed", percent(share(stats.pass_count, stats.attempt_count))
    has_mean = stats.HasField("mean_objective")
    return "objective", f"{stats.mean_objective:.2f}" if has_mean else NOTHING


def _labelled(pairs: Sequence[tuple[str, str]], width: int) -> Text:
    """On as many lines as it takes: a value stays with its label."""
    text, used = Text(), 0
    for label, value in pairs:
        size = len(label) + 1 + len(value)
        gap = "   " if used and used + 3 + size <= width else "\n" if used else ""
        used = size + (used + 3 if gap == "   " else 0)
        text.append(gap).append(f"{label} ", "bright_black").append(value)
    return text


def _domains(stats: RunStats, width: int) -> RenderableType:
    titles = ("mean", "attempts") if width < _NARROW else ("mean", "prior", "attempts")
    free = width - sum(len(title) + 1 for title in ("prompts", *titles)) - 1
    longest = max(len(clean(domain.domain)) for domain in stats.domains)
    # Names are for copying, so the bar yields to them first.
    name_width = max(len("domain"), min(longest, free - _LEAST_BAR))
    bar_width = max(_LEAST_BAR, min(_MAX_BAR, free - name_width))
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False, header_style="bright_black")
    table.add_column("domain", max_width=name_width, overflow="ellipsis", no_wrap=True)
    table.add_column("prompts", justify="right", no_wrap=True)
    table.add_column("bands", width=bar_width)
    for title in titles:
        table.add_column(title, justify="right", no_wrap=True)
    for domain in stats.domains:
        means = [f"{domain.mean_pass_rate:.2f}", f"{domain.prior_mean:.2f}"][: len(titles) - 1]
        _add(table, Text(clean(domain.domain)), domain, bar_width, means)
    if len(stats.domains) > 1:
        _add(table, Text("all", "bold"), stats, bar_width, [""] * (len(titles) - 1))
    return Group(table, bars.band_legend())


def _add(
    table: Table, name: Text, stats: DomainStats | RunStats, bar_width: int, means: Sequence[str]
) -> None:
    bar = Text("\n").join([bars.band_bar(stats.bands, bar_width), bars.band_shares(stats.bands)])
    table.add_row(name, short(stats.prompt_count), bar, *means, short(stats.attempt_count))


def _histogram(stats: RunStats, rate: str, width: int) -> RenderableType | None:
    """None where there is no room for it."""
    counts, visited = list(stats.pass_rate_histogram), list(stats.visited_pass_rate_histogram)
    visited += [0] * (len(counts) - len(visited))
    bin_width = min(3, (width - 9) // max(1, len(counts)))
    if bin_width < 1:
        return None
    title = Text.assemble(
        (f"prompts by believed {rate}   ", "bright_black"),
        ("█", bars.VISITED_STYLE),
        " attempted   ",
        ("░", bars.UNVISITED_STYLE),
        " not yet",
    )
    lines = [title]
    for number, row in enumerate(bars.histogram(counts, visited, bin_width)):
        label = short(max(counts, default=0)) if number == 0 else ""
        lines.append(Text.assemble((f"{label:>6} ", "bright_black"), ("│", "bright_black"), row))
    span = bin_width * len(counts)
    lines.append(Text(f"{0:>6} └{'─' * span}", "bright_black"))
    ticks = "".join(f"{tick:<{span // 4}}" for tick in ("0", "0.25", "0.5", "0.75"))
    lines.append(Text(f"{'':8}{ticks}1", "bright_black"))
    return Group(*lines)


def _windows(windows: Sequence[WindowStats], width: int, *, is_graded: bool) -> RenderableType:
    if not windows:
        return Text("No window has an attempt yet.", "bright_black")
    most = max(10, min(_MAX_SPARKLINE, width - 28))
    spans = [(w.first_policy_step, w.last_policy_step) for w in windows]
    first, last = spans[0][0], spans[-1][1]
    each = (last + 1 - first) / most
    label = f"steps {steps(first, last)}" + (f", {each:.3g} to a character" if each > 1 else "")
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_row(Text("by step", "bright_black"), Text(label, "bright_black"))

    def add(title: str, counts: Sequence[tuple[float, float]], style: str, said: _Said) -> None:
        values = rebinned(spans, counts, most)
        line = Text.assemble(bars.sparkline(values, style), f"  {_change(values, said)}")
        table.add_row(Text(title, "bright_black"), line)

    add("mixed groups", [(w.mixed_group_count, w.group_count) for w in windows], "green", percent)
    if is_graded:
        add("objective", [_objective(w) for w in windows], "cyan", "{:.2f}".format)
    else:
        add("passed", [(w.pass_count, w.attempt_count) for w in windows], "cyan", percent)
    return table


def _objective(window: WindowStats) -> tuple[float, float]:
    count = window.attempt_count if window.HasField("mean_objective") else 0
    return window.mean_objective * count, count


def _change(values: Sequence[float | None], said: _Said) -> str:
    known = [value for value in values if value is not None]
    if len(known) < 2:
        return said(known[0]) if known else ""
    return f"{said(known[0])} → {said(known[-1])}"
