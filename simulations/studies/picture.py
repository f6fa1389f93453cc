"""Draw the picture of a study."""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from fedwinnow.server.report.chart_style import (
    CLEAN,
    INK,
    MUTED,
    PRIVATE,
    WIDTH,
    chart_style,
    fix_ticks,
    svg_file,
)
from fedwinnow.server.report.comparisons import Interval
from fedwinnow.simulations.studies.result import ScorerRow, StudyResult


def study_picture(result: StudyResult) -> str:
    """Return the picture of a study as the text of an SVG file."""
    return svg_file(study_figure(result), result.study)


def study_figure(result: StudyResult) -> Figure:
    """Draw splits of the same data against the first one, or else every scorer's AUROC."""
    return _intervals(result) if result.compared else _dots(result)


@chart_style()
def _dots(result: StudyResult) -> Figure:
    """Draw the AUROC of every scorer, one dot per seed, split by split."""
    splits = list(result.differences)
    names = by_mean([row for split in splits for row in result.scorers(split)])
    size = (WIDTH, (0.36 * max(len(names), 1) + 1.2) * len(splits))
    figure = Figure(figsize=size, layout="constrained")
    panels = figure.subplots(len(splits), squeeze=False)[:, 0]
    for axes, split in zip(panels, splits, strict=True):
        found = aurocs(result.scorers(split))
        for place, name in enumerate(reversed(names)):
            values = found.get(name, [])
            axes.plot(values, [place] * len(values), "o", color=CLEAN, alpha=0.75)
            if values:
                axes.plot(np.mean(values), place, "|", color=INK, markersize=14)
        axes.set_yticks(range(len(names)), list(reversed(names)))
        axes.axvline(0.5, color=MUTED, linewidth=0.8)
        axes.set_title(split if len(splits) > 1 else "", loc="left")
    axes.set_xlabel("pooled AUROC, clean against corrupted (dot: one seed, bar: mean)")
    fix_ticks(*panels)
    return figure


@chart_style()
def _intervals(result: StudyResult) -> Figure:
    """Draw each split's loss difference to the first split, above the first split's other arms."""
    first = next(iter(result.compared))
    rows: list[tuple[str, Interval, str]] = [
        (split, found, CLEAN) for split, found in result.compared.items() if found is not None
    ]
    rows += [
        (f"{first}, {arm}", found, PRIVATE) for arm, found in result.differences[first].items()
    ]
    figure = Figure(figsize=(WIDTH, 0.36 * len(rows) + 1.2), layout="constrained")
    axes = figure.subplots()
    for place, (_, found, color) in enumerate(reversed(rows)):
        axes.plot([found.low, found.high], [place, place], color=color, linewidth=1.6)
        axes.plot(found.mean, place, "o", color=color)
    axes.set_yticks(range(len(rows)), [name for name, _, _ in reversed(rows)])
    axes.axvline(0.0, color=MUTED, linewidth=0.8)
    axes.set_xlabel(f"loss − that of {first}, curated, nats (95 %); right of the line is worse")
    fix_ticks(axes)
    return figure


def by_mean(rows: Sequence[ScorerRow]) -> list[str]:
    """Return scorers by mean AUROC, best first; those without one are left out."""
    means = {name: float(np.mean(values)) for name, values in aurocs(rows).items()}
    return sorted(means, key=lambda name: (-means[name], name))


def aurocs(rows: Sequence[ScorerRow]) -> dict[str, list[float]]:
    """Return scorer → pooled AUROCs of its rows that have one."""
    found: dict[str, list[float]] = {}
    for row in rows:
        if row.auroc_pooled is not None:
            found.setdefault(row.scorer, []).append(row.auroc_pooled)
    return found
