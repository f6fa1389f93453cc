"""Parts of the report: sections hold blocks, a block is a text, a figure or a table."""

from collections.abc import Mapping, Sequence
from typing import Any

Tree = Mapping[str, Any]
Section = dict[str, Any]


def number(value: float | None, digits: int = 3) -> str:
    """A number with fixed digits, or a dash."""
    return "–" if value is None else f"{value:.{digits}f}"


def short(value: float | None) -> str:
    """A number of any size in three digits, or a dash."""
    return "–" if value is None else f"{value:.3g}"


def threshold_of(record: Tree) -> float | None:
    """The threshold, or None where everything is kept."""
    value = record["threshold"]["value"]
    return float(value) if isinstance(value, int | float) else None


def own_thresholds(record: Tree) -> dict[str, float]:
    """Site → its own threshold, where the rule gives each site one."""
    own = record["threshold"].get("per_site", {})
    return {site: float(value) for site, value in own.items() if isinstance(value, int | float)}


def section(name: str, title: str, *blocks: dict[str, Any]) -> Section:
    """A titled part of the page."""
    return {"id": name, "title": title, "blocks": list(blocks)}


def text(text: str, *, warning: bool = False) -> dict[str, Any]:
    """A paragraph."""
    return {"kind": "text", "text": text, "warning": warning}


def figure(svg: str, caption: str) -> dict[str, Any]:
    """A picture with the caption that says what to see."""
    return {"kind": "figure", "svg": svg, "caption": caption}


def table(
    head: Sequence[str],
    rows: Sequence[Sequence[Any]],
    *,
    caption: str = "",
    wrap: bool = False,
    own: int | None = None,
) -> dict[str, Any]:
    """A table; ``own`` is the row in bold, ``wrap`` breaks long texts."""
    lines = [{"cells": list(row), "own": place == own} for place, row in enumerate(rows)]
    return {"kind": "table", "head": head, "rows": lines, "caption": caption, "wrap": wrap}


def curves_of(rounds: Sequence[Tree]) -> dict[str, list[float]]:
    """Site → training losses of all rounds in a row."""
    curves: dict[str, list[float]] = {}
    for one in rounds:
        for site, part in one["sites"].items():
            curves.setdefault(site, []).extend(part["losses"])
    return {site: values for site, values in curves.items() if values}
