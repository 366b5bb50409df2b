"""FROC curves drawn with matplotlib, without a display: values in, pictures out."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import TYPE_CHECKING

import matplotlib as mpl
from matplotlib.figure import Figure

from training.froc import RATES

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from matplotlib.axes import Axes

RATE_NAMES = ("1/8", "1/4", "1/2", "1", "2", "4", "8")

COLOURS = ("#0b5394", "#b45309", "#15803d", "#7e22ce", "#be123c", "#0e7490", "#4d4d4d")
"""Dark enough on white, and told apart by the colour-blind in this order."""

STYLES = ("-", ":", "-.")
"""For the second and third time that the colours come; dashes are for published curves."""


@dataclass(frozen=True, slots=True)
class Line:
    """A curve to draw.

    Attributes
    ----------
    name
        For the legend.
    false_per_scan, sensitivity
        Its points.
    low, high
        Its band at the same points; empty where there is none.
    sensitivity_at_rates
        At the seven rates of LUNA16, drawn as dots.
    published
        A curve from a paper, known at its dots alone: dashed.
    """

    name: str
    false_per_scan: tuple[float, ...]
    sensitivity: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    sensitivity_at_rates: tuple[float, ...]
    published: bool = False


def froc_figure(lines: Sequence[Line], title: str) -> Figure:
    """Draw curves with their bands; false positives a scan on a log2 axis from 1/8 to 8."""
    figure = Figure(figsize=(7.0, 5.0), layout="constrained")
    axes = figure.subplots()
    for number, line in enumerate(lines):
        style = "--" if line.published else STYLES[number // len(COLOURS) % len(STYLES)]
        _draw(axes, line, COLOURS[number % len(COLOURS)], style)
    axes.set_xscale("log", base=2)
    axes.set_xlim(RATES[0], RATES[-1])
    axes.set_xticks(RATES, RATE_NAMES)
    axes.minorticks_off()
    axes.set_ylim(0.0, 1.02)
    axes.set_xlabel("Average number of false positives per scan")
    axes.set_ylabel("Sensitivity")
    axes.set_title(title)
    axes.grid(visible=True, color="#dddddd", linewidth=0.7)
    axes.set_axisbelow(True)
    if lines:
        axes.legend(loc="lower right")
    return figure


def _draw(axes: Axes, line: Line, colour: str, style: str) -> None:
    if line.low:
        axes.fill_between(line.false_per_scan, line.low, line.high, color=colour, alpha=0.15, linewidth=0)
    axes.plot(line.false_per_scan, line.sensitivity, style, color=colour, linewidth=1.8, label=line.name)
    axes.plot(RATES, line.sensitivity_at_rates, "o", color=colour, markersize=4, clip_on=False)


def svg_of(figure: Figure) -> str:
    """Give the figure as SVG; the same figure gives the same text, with no date and identifiers by a fixed salt."""
    file = io.StringIO()
    with mpl.rc_context({"svg.hashsalt": "nodule-node"}):
        figure.savefig(file, format="svg", metadata={"Date": None})
    return file.getvalue()


def save_figure(figure: Figure, png: Path, svg: Path) -> None:
    """Write the figure both ways."""
    svg.write_text(svg_of(figure), encoding="utf-8")
    figure.savefig(png, format="png", dpi=150, metadata={"Software": None})
