"""Build the parts of the report: sections hold blocks; a block is a text, a figure or a table."""

from collections.abc import Sequence
from typing import Any

from matplotlib.figure import Figure

from fedwinnow.server.report.chart_style import svg_element
from fedwinnow.server.report.record import RecordedRound

Section = dict[str, Any]


def number(value: float | None, digits: int = 3) -> str:
    """Format a number with fixed digits; a dash for None."""
    return "–" if value is None else f"{value:.{digits}f}"


def short(value: float | None) -> str:
    """Format a number of any size in three digits; a dash for None."""
    return "–" if value is None else f"{value:.3g}"


def section(name: str, title: str, *blocks: dict[str, Any]) -> Section:
    """Return a titled section of the page."""
    return {"id": name, "title": title, "blocks": list(blocks)}


def text(text: str, *, warning: bool = False) -> dict[str, Any]:
    """Return a paragraph; ``warning`` sets it off from the others."""
    return {"kind": "text", "text": text, "warning": warning}


def picture(figure: Figure, name: str, caption: str) -> dict[str, Any]:
    """Return a figure as SVG whose ids begin with ``name``, and the caption: what to see."""
    return {"kind": "figure", "svg": svg_element(figure, name), "caption": caption}


def table(
    head: Sequence[str],
    rows: Sequence[Sequence[Any]],
    *,
    caption: str = "",
    wrap: bool = False,
    own: int | None = None,
) -> dict[str, Any]:
    """Return a table; ``own`` is the row in bold, ``wrap`` breaks long texts."""
    lines = [{"cells": list(row), "own": place == own} for place, row in enumerate(rows)]
    return {"kind": "table", "head": head, "rows": lines, "caption": caption, "wrap": wrap}


def curves_of(rounds: Sequence[RecordedRound]) -> dict[str, list[float]]:
    """Return site → training losses of all rounds in a row."""
    curves: dict[str, list[float]] = {}
    for one in rounds:
        for site, part in one.sites.items():
            curves.setdefault(site, []).extend(part.losses)
    return {site: values for site, values in curves.items() if values}
