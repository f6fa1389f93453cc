"""The picture of a study."""

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

Tree = dict[str, Any]
_OURS, _OTHERS = "#2f6f6d", "#8a8a8a"


def picture(result: Tree) -> str:
    """As SVG text: splits of the same data against the first one, or else every scorer's AUROC."""
    if result["compared"]:
        return _svg(_intervals(result))
    return _svg(_dots(result))


def _dots(result: Tree) -> Figure:
    """AUROC of every scorer, one dot per seed, split by split."""
    rows = [row for row in result["rows"] if row["arm"] is None and row["auroc_pooled"] is not None]
    splits = list(result["differences"])
    names = by_mean(rows)
    size = (7.2, (0.36 * max(len(names), 1) + 1.2) * len(splits))
    figure = Figure(figsize=size, layout="constrained")
    for axes, split in zip(figure.subplots(len(splits), squeeze=False)[:, 0], splits, strict=True):
        for place, name in enumerate(reversed(names)):
            mine = [row for row in rows if (row["scorer"], row["split"]) == (name, split)]
            values = [row["auroc_pooled"] for row in mine]
            axes.plot(values, [place] * len(values), "o", color="#2f6f6d", alpha=0.75)
            if values:
                axes.plot(np.mean(values), place, "|", color="#1b1b1b", markersize=14)
        axes.set_yticks(range(len(names)), list(reversed(names)))
        axes.axvline(0.5, color="#999999", linewidth=0.8)
        axes.set_title(split if len(splits) > 1 else "", loc="left")
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
    axes.set_xlabel("pooled AUROC, clean against corrupted (dot: one seed, bar: mean)")
    return figure


def _intervals(result: Tree) -> Figure:
    """What each split's loss differs from the first one's, above that one's own other arms."""
    first = next(iter(result["compared"]))
    rows = [(split, found, _OURS) for split, found in result["compared"].items() if found]
    rows += [
        (f"{first}, {arm}", found, _OTHERS) for arm, found in result["differences"][first].items()
    ]
    figure = Figure(figsize=(7.2, 0.36 * len(rows) + 1.2), layout="constrained")
    axes = figure.subplots()
    for place, (_, found, color) in enumerate(reversed(rows)):
        axes.plot([found["low"], found["high"]], [place, place], color=color, linewidth=1.6)
        axes.plot(found["mean"], place, "o", color=color)
    axes.set_yticks(range(len(rows)), [name for name, _, _ in reversed(rows)])
    axes.axvline(0.0, color="#999999", linewidth=0.8)
    axes.set_xlabel(f"loss − that of {first}, curated, nats (95 %); right of the line is worse")
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    return figure


def _svg(figure: Figure) -> str:
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()


def by_mean(rows: Sequence[Tree]) -> list[str]:
    """Scorers by their mean AUROC, best first."""
    means = {
        name: float(np.mean([row["auroc_pooled"] for row in rows if row["scorer"] == name]))
        for name in {row["scorer"] for row in rows}
    }
    return sorted(means, key=lambda name: (-means[name], name))
