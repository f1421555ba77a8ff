"""Bars of block characters. Each part has its own glyph, so that they read without colour."""

from __future__ import annotations

from collections.abc import Sequence

from rich.text import Text

from curriculum_api.v1.stats_pb2 import BandCounts
from curriculum_operator.render.words import percent

BAND_GLYPHS = {"unseen": "░", "beyond": "▒", "edge": "█", "mastered": "▓"}
BAND_STYLES = {
    "unseen": "bright_black",
    "beyond": "magenta",
    "edge": "bold green",
    "mastered": "blue",
}
VISITED_STYLE = "cyan"
UNVISITED_STYLE = "bright_black"

_EIGHTHS = " ▁▂▃▄▅▆▇█"
_HISTOGRAM_ROWS = 8


def sparkline(values: Sequence[float | None], style: str = "cyan") -> Text:
    """Shares in [0, 1], on a fixed scale; a dot where there is no value."""
    text = Text()
    for value in values:
        if value is None:
            text.append("·", "bright_black")
        else:
            text.append(_EIGHTHS[1 + min(7, max(0, int(value * 8)))], style)
    return text


def band_counts(bands: BandCounts) -> dict[str, int]:
    return {word: getattr(bands, f"{word}_count") for word in BAND_GLYPHS}


def band_bar(bands: BandCounts, width: int) -> Text:
    counts = band_counts(bands)
    cells = _apportion(list(counts.values()), width)
    return Text.assemble(
        *((BAND_GLYPHS[word] * n, BAND_STYLES[word]) for word, n in zip(counts, cells, strict=True))
    )


def band_shares(bands: BandCounts) -> Text:
    """The bar in numbers, each behind its glyph."""
    counts = band_counts(bands)
    total = sum(counts.values())
    parts = [
        Text.assemble((BAND_GLYPHS[word], BAND_STYLES[word]), f" {percent(count / total)}")
        for word, count in counts.items()
        if count
    ]
    return Text(" ").join(parts)


def band_legend() -> Text:
    parts = [
        Text.assemble((BAND_GLYPHS[word], BAND_STYLES[word]), f" {word}") for word in BAND_GLYPHS
    ]
    return Text("   ").join(parts)


def interval_bar(low: float, mean: float, high: float, width: int) -> Text:
    """The line from 0 to 1 with the interval thick and the mean as a dot."""
    first, middle, last = (
        min(width - 1, max(0, int(value * width))) for value in (low, mean, high)
    )
    text = Text()
    for cell in range(width):
        if cell == middle:
            text.append("●", "bold green")
        elif first <= cell <= last:
            text.append("━", "green")
        else:
            text.append("·", "bright_black")
    return text


def histogram(counts: Sequence[int], visited: Sequence[int], bin_width: int = 3) -> list[Text]:
    """Rows from the top; a bin's visited part is solid, the rest shaded, its last cell a gap."""
    bar, gap = max(1, bin_width - 1), " " if bin_width > 1 else ""
    peak = max(counts, default=0) or 1
    rows = []
    for row in reversed(range(_HISTOGRAM_ROWS)):
        text = Text()
        for count, seen in zip(counts, visited, strict=True):
            solid = min(8, _eighths(seen, peak) - 8 * row)
            height = min(8, _eighths(count, peak) - 8 * row)
            if solid > 0:
                # A cell holds one glyph; where the shade fills the rest, it is the background.
                shade = f" on {UNVISITED_STYLE}" if solid < height == 8 else ""
                text.append(_EIGHTHS[solid] * bar, f"{VISITED_STYLE}{shade}")
            else:
                text.append(("░" if height > 0 else " ") * bar, UNVISITED_STYLE)
            text.append(gap)
        rows.append(text)
    return rows


def _eighths(count: int, peak: int) -> int:
    """The height in eighths of a row; what is there at all shows."""
    return max(1, round(8 * _HISTOGRAM_ROWS * count / peak)) if count else 0


def _apportion(counts: Sequence[int], width: int) -> list[int]:
    """Cells in proportion to the counts, adding up to the width; what is there at all shows."""
    total = sum(counts)
    if not total:
        return [0 for _ in counts]
    cells = [max(1, round(width * count / total)) if count else 0 for count in counts]
    while (excess := sum(cells) - width) != 0:
        largest = max(range(len(cells)), key=cells.__getitem__)
        cells[largest] -= 1 if excess > 0 else -1
    return cells
