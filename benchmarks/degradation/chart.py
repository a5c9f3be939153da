"""The picture: a panel for each figure, a lane for each row, a dot for each load."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from xml.sax.saxutils import escape

from benchmarks.measure import Row

COLOURS = ("#9ecae1", "#4292c6", "#08519c", "#d94801")
"""From the lightest load to the heaviest."""

LEFT, TOP, PANEL, GAP, LANE = 212, 74, 170, 46, 9
FONT = 'font-size="12" font-family="system-ui, sans-serif"'
INK, GRID = "#24292f", "#d8dee4"


@dataclass(frozen=True)
class Panel:
    """One figure: its heading, its scale, and the ticks of its axis."""

    key: str
    heading: str
    ticks: tuple[float, ...]
    logarithmic: bool = False

    def place(self, value: float) -> float:
        """Where on the axis a value is, from 0 to 1; beyond the ends, at the end."""
        first, last = self.ticks[0], self.ticks[-1]
        scale: Callable[[float], float] = math.log if self.logarithmic else float
        value = min(last, max(first, value))
        return (scale(value) - scale(first)) / (scale(last) - scale(first))


PANELS = (
    Panel("quiet_in_time", "quiet: answered in 60 s, %", (0, 25, 50, 75, 100)),
    Panel("quiet_ratio", "quiet: p99 ÷ p99 alone", (1, 2, 5, 10, 20, 50), logarithmic=True),
    Panel("in_time", "all: answered in 60 s, %", (0, 25, 50, 75, 100)),
    Panel("wasted_percent", "calls wasted, %", (0, 25, 50, 75, 100)),
)


def text(x: float, y: float, words: str, anchor: str = "start", weight: str = "normal") -> str:
    """A label."""
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-weight="{weight}" fill="{INK}">'
        f"{escape(words)}</text>"
    )


def line(x1: float, y1: float, x2: float, y2: float) -> str:
    """A line of the grid."""
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{GRID}"/>'


def dot(x: float, y: float, colour: str, words: str) -> str:
    """A figure; what it says is shown to whoever points at it."""
    return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{colour}"><title>{escape(words)}</title></circle>'


def chart(loads: dict[str, dict[str, Row]]) -> str:
    """The picture of a run, as SVG."""
    names = list(next(iter(loads.values())))
    colours = dict(zip(loads, COLOURS, strict=False))
    band = LANE * (len(colours) + 1)
    bottom = TOP + band * len(names)
    width, height = LEFT + len(PANELS) * (PANEL + GAP), bottom + 30
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" {FONT}>',
        "<title>How each way of sharing an account does at each load</title>",
        f'<rect width="{width}" height="{height}" rx="6" fill="#ffffff"/>',
        text(12, 26, "load", weight="bold"),
    ]
    for place, (load, colour) in enumerate(colours.items()):
        x = 60 + 76 * place
        parts += [dot(x, 22, colour, load), text(x + 9, 26, f"{float(load):.0%}")]
    for number, name in enumerate(names):
        y = TOP + band * number
        weight = "bold" if name.startswith("waitline") else "normal"
        parts += [line(12, y, width - 12, y), text(12, y + band / 2 + 4, name, weight=weight)]
    parts.append(line(12, bottom, width - 12, bottom))
    for place, panel in enumerate(PANELS):
        parts += drawn(panel, LEFT + place * (PANEL + GAP), bottom, loads, colours, names)
    return "\n".join([*parts, "</svg>"]) + "\n"


def drawn(
    panel: Panel,
    left: float,
    bottom: float,
    loads: dict[str, dict[str, Row]],
    colours: dict[str, str],
    names: list[str],
) -> list[str]:
    """One panel."""
    parts = [text(left, TOP - 16, panel.heading, weight="bold")]
    for tick in panel.ticks:
        x = left + PANEL * panel.place(tick)
        parts += [line(x, TOP, x, bottom), text(x, bottom + 18, f"{tick:g}", "middle")]
    band = LANE * (len(colours) + 1)
    for lane, (load, colour) in enumerate(colours.items()):
        for number, name in enumerate(names):
            value = loads[load][name].get(panel.key)
            if value is not None:
                y = TOP + band * number + LANE * (lane + 1)
                words = f"{name}, load {float(load):.0%}: {value:.3g}"
                parts.append(dot(left + PANEL * panel.place(value), y, colour, words))
    return parts
