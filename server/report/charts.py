"""Draw the charts of the report as matplotlib figures, without a display."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from fedwinnow.curation.datatypes import ScoreSummary
from fedwinnow.server.report.chart_style import (
    CLEAN,
    CORRUPTED,
    CUT,
    GRID,
    INK,
    LINES,
    MUTED,
    PRIVATE,
    SIZE,
    SMALL,
    WIDTH,
    chart_style,
    fix_ticks,
)
from fedwinnow.server.report.record import RunRecord


@chart_style()
def kept_figure(record: RunRecord) -> Figure:
    """Draw kept and dropped samples of every site, side by side in one bar each."""
    sites = record.sites
    figure = Figure(figsize=(WIDTH, 0.5 * len(sites) + 0.9), layout="constrained")
    axes = figure.add_subplot()
    places = range(len(sites))
    kept = [site.kept for site in sites]
    dropped = [max(0, site.samples - site.kept) for site in sites]
    axes.barh(places, kept, color=CLEAN, height=0.6, label="kept")
    axes.barh(places, dropped, left=kept, color=GRID, height=0.6, label="dropped")
    for place, site in zip(places, sites, strict=True):
        _label(axes, site.samples, place, f"{site.share:.0%}")
    axes.set_yticks(list(places), [site.site for site in sites])
    axes.invert_yaxis()
    axes.set_xlabel("samples")
    axes.margins(x=0.12)
    axes.legend(frameon=False, ncols=2, loc="lower right", bbox_to_anchor=(1, 1))
    fix_ticks(axes)
    return figure


@chart_style()
def score_histogram_figure(record: RunRecord) -> Figure:
    """Draw score densities: public anchors, all silos together, each silo, on one axis of scores.

    A dashed line is the threshold; each silo has its own where the rule sets one per site.
    """
    sites = [site for site in record.sites if site.edges]
    rows = 2 + len(sites)
    figure = Figure(figsize=(WIDTH, 1.15 * rows + 0.6), layout="constrained")
    panels = figure.subplots(rows, 1, sharex=True, squeeze=False)[:, 0]
    span = (0.0, 1.0) if record.scorer.unit == "probability" else _span(record)
    bins = np.linspace(*span, 31)
    _anchors(panels[0], record, bins)
    total = np.sum([site.counts for site in sites], axis=0) if sites else np.zeros(0)
    for axes, name, counts in zip(
        panels[1:],
        ["all silos", *(site.site for site in sites)],
        [total, *(site.counts for site in sites)],
        strict=True,
    ):
        if sites:
            _steps(axes, np.array(sites[0].edges), np.array(counts), bins)
        _name(axes, name)
    threshold, own = record.threshold.cut, record.threshold.cuts
    for axes, name in zip(panels, ["", "", *(site.site for site in sites)], strict=True):
        axes.set_yticks([])
        axes.spines["left"].set_visible(False)
        axes.set_xlim(*span)
        cut = own.get(name, threshold)
        if cut is not None:
            axes.axvline(cut, color=CUT, linewidth=1.4, linestyle=(0, (4, 2)))
    panels[-1].set_xlabel(f"score of {record.scorer.name} ({record.scorer.unit})")
    fix_ticks(*panels)
    return figure


@chart_style()
def summary_figure(summary: ScoreSummary, threshold: float | None, figure: Figure) -> None:
    """Draw one summary of scores into an empty figure; a dashed line is a finite threshold.

    Counts are those of 30 bins of equal width, over which the summary's cells are spread evenly.
    """
    edges = np.array(summary.edges)
    pad = 0.05 * float(edges[-1] - edges[0]) or 1.0
    span = (float(edges[0]) - pad, float(edges[-1]) + pad)
    axes = figure.add_subplot()
    _steps(axes, edges, np.array(summary.counts), np.linspace(*span, 31))
    axes.set_xlim(*span)
    if threshold is not None and np.isfinite(threshold):
        axes.axvline(threshold, color=CUT, linewidth=1.4, linestyle=(0, (4, 2)))
    axes.set_xlabel("score")
    axes.set_ylabel("samples")
    fix_ticks(axes)


@chart_style()
def lines_figure(
    series: Mapping[str, Sequence[float]], *, x: str, y: str, start: int = 1
) -> Figure:
    """Draw a line per name over start, start + 1, …; names stand beside in the lines' colours."""
    figure = Figure(figsize=(WIDTH, 2.9), layout="constrained")
    axes = figure.add_subplot()
    drawn: list[Line2D] = []
    for place, values in enumerate(series.values()):
        colour = LINES[place % len(LINES)]
        steps = np.arange(start, start + len(values))
        drawn += axes.plot(steps, values, color=colour, linewidth=1.8, marker="o", markersize=3.2)
    axes.grid(axis="y", color=GRID, linewidth=0.8)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    # Handles and names are given, as matplotlib leaves out a label that begins with "_".
    axes.legend(
        drawn, list(series), frameon=False, fontsize=SMALL, loc="upper left",
        bbox_to_anchor=(1.0, 1.0),
    )  # fmt: skip
    fix_ticks(axes)
    return figure


@chart_style()
def arm_loss_figure(record: RunRecord) -> Figure:
    """Draw the evaluation loss of every arm after training; the untrained adapter's as a line."""
    losses = {a: one.eval_loss for a, one in record.arms.items() if one.eval_loss is not None}
    figure = Figure(figsize=(WIDTH, 0.42 * max(len(losses), 1) + 0.9), layout="constrained")
    axes = figure.add_subplot()
    for place, loss in enumerate(losses.values()):
        axes.plot(loss, place, "o", color=LINES[place % len(LINES)], markersize=8)
        _label(axes, loss, place, f"{loss:.4f}", away=8)
    initial = record.initial_loss
    if initial is not None:
        axes.axvline(initial, color=MUTED, linewidth=1, linestyle=":")
        axes.text(initial, -0.75, "untrained", ha="right", fontsize=SMALL, color=MUTED)
    axes.set_yticks(range(len(losses)), list(losses))
    axes.set_ylim(len(losses) - 0.4, -1.0)
    axes.grid(axis="x", color=GRID, linewidth=0.8)
    axes.set_xlabel("evaluation loss, nats per token (left is better)")
    fix_ticks(axes)
    return figure


@chart_style()
def scorer_auroc_figure(record: RunRecord) -> Figure:
    """Draw the pooled AUROC of every scorer, best first, the run's own in another colour."""
    aurocs = {name: figures.auroc for name, figures in record.figures_by_scorer.items()}
    ordered = sorted(aurocs.items(), key=lambda item: -item[1])
    figure = Figure(figsize=(WIDTH, 0.3 * len(ordered) + 0.9), layout="constrained")
    axes = figure.add_subplot()
    for place, (name, value) in enumerate(ordered):
        colour = CLEAN if name == record.scorer.name else PRIVATE
        axes.barh(place, value, color=colour, height=0.62)
        _label(axes, value, place, f"{value:.3f}")
    axes.axvline(0.5, color=INK, linewidth=0.9, zorder=1.5)
    axes.set_yticks(range(len(ordered)), [name for name, _ in ordered])
    axes.invert_yaxis()
    axes.set_xlim(0, 1.08)
    axes.set_xlabel("AUROC, clean against corrupted (line: chance)")
    fix_ticks(axes)
    return figure


@chart_style()
def phase_seconds_figure(record: RunRecord) -> Figure:
    """Draw the seconds of every phase, all its rounds together."""
    spent: dict[str, float] = {}
    for phase in record.phases:
        spent[phase.phase] = spent.get(phase.phase, 0.0) + phase.seconds
    figure = Figure(figsize=(WIDTH, 0.3 * len(spent) + 0.9), layout="constrained")
    axes = figure.add_subplot()
    axes.barh(range(len(spent)), list(spent.values()), color=PRIVATE, height=0.62)
    for place, seconds in enumerate(spent.values()):
        _label(axes, seconds, place, f"{seconds:.1f} s")
    axes.set_yticks(range(len(spent)), [name.replace("_", " ") for name in spent])
    axes.invert_yaxis()
    axes.margins(x=0.12)
    axes.set_xlabel("seconds")
    fix_ticks(axes)
    return figure


def _anchors(axes: Axes, record: RunRecord, bins: np.ndarray) -> None:
    """Draw the densities of clean and of corrupted anchors in one panel."""
    public, kinds = np.array(record.public.scores), np.array(record.public.kinds)
    for mask, colour, label in (
        (kinds == "clean", CLEAN, "clean anchors"),
        (kinds != "clean", CORRUPTED, "corrupted anchors"),
    ):
        if mask.any():
            scores = np.clip(public[mask], bins[0], bins[-1])
            axes.hist(scores, bins.tolist(), color=colour, alpha=0.65, label=label)
    axes.legend(frameon=False, fontsize=SMALL, loc="upper right", ncols=2, bbox_to_anchor=(1, 1.4))
    _name(axes, "public anchors")


def _span(record: RunRecord) -> tuple[float, float]:
    values = [*record.public.scores]
    for site in record.sites:
        values += [site.edges[0], site.edges[-1]] if site.edges else []
    low, high = np.quantile(values, [0.02, 0.98]) if values else (0.0, 1.0)
    pad = 0.05 * (high - low) or 1.0
    return float(low - pad), float(high + pad)


def _steps(axes: Axes, edges: np.ndarray, counts: np.ndarray, bins: np.ndarray) -> None:
    """Draw the cells of a summary, spread evenly over coarser bins of equal width."""
    low, high = bins[0], bins[-1]
    bounds = np.concatenate([[min(low, edges[0])], edges, [max(high, edges[-1])]])
    cumulative = np.concatenate([[0.0], np.cumsum(counts)])
    heights = np.diff(np.interp(bins, bounds, cumulative))
    axes.stairs(heights, bins, fill=True, color=PRIVATE, alpha=0.8)


def _name(axes: Axes, name: str) -> None:
    axes.set_title(name, loc="left", fontsize=SIZE, pad=2)


def _label(axes: Axes, x: float, y: float, text: str, *, away: float = 4.0) -> None:
    """Write text right of a point, on white, so that a line behind does not cross it."""
    axes.annotate(
        text, (x, y), xytext=(away, 0), textcoords="offset points", va="center", fontsize=SMALL,
        bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.8},
    )  # fmt: skip
