"""The pictures of the report as SVG text, drawn by matplotlib without a display."""

import io
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

INK, MUTED, GRID = "#24323f", "#66747f", "#dfe5e8"
CLEAN, CORRUPTED, PRIVATE, CUT = "#2f7f79", "#c8643c", "#8fa3ad", "#1d3f72"
LINES = ("#1d3f72", "#c8643c", "#2f7f79", "#8a5fa8", "#a08320", "#66747f")
_STYLE: Any = {
    "svg.fonttype": "none",
    "text.parse_math": False,  # a name with two dollar signs is a name
    "font.family": "DejaVu Sans",
    "font.size": 9.5,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "text.color": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
}
Tree = Mapping[str, Any]


def kept_bars(sites: Sequence[Tree]) -> str:
    """Kept and dropped samples of every site, side by side in one bar each."""
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(7.6, 0.5 * len(sites) + 0.9), layout="constrained")
        axes = figure.add_subplot()
        places = range(len(sites))
        kept = [site["kept"] for site in sites]
        dropped = [max(0, site["samples"] - site["kept"]) for site in sites]
        axes.barh(places, kept, color=CLEAN, height=0.6, label="kept")
        axes.barh(places, dropped, left=kept, color=GRID, height=0.6, label="dropped")
        for place, site in zip(places, sites, strict=True):
            share = site["kept"] / site["samples"] if site["samples"] else 0.0
            _label(axes, site["samples"], place, f"{share:.0%}")
        axes.set_yticks(list(places), [str(site["site"]) for site in sites])
        axes.invert_yaxis()
        axes.set_xlabel("samples")
        axes.margins(x=0.12)
        axes.legend(frameon=False, ncols=2, loc="lower right", bbox_to_anchor=(1, 1))
        return svg(figure, "kept")


def histograms(record: Tree, threshold: float | None, own: Mapping[str, float]) -> str:
    """Score densities: public anchors, all silos together, each silo, on one axis of scores."""
    sites = [site for site in record["sites"] if site["edges"]]
    public, kinds = np.array(record["public"]["scores"]), np.array(record["public"]["kinds"])
    rows = 2 + len(sites)
    probability = record["scorer"]["unit"] == "probability"
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(7.6, 1.15 * rows + 0.6), layout="constrained")
        panels = figure.subplots(rows, 1, sharex=True, squeeze=False)[:, 0]
        span = (0.0, 1.0) if probability else _span(record)
        bins = np.linspace(*span, 31)
        for mask, colour, label in (
            (kinds == "clean", CLEAN, "clean anchors"),
            (kinds != "clean", CORRUPTED, "corrupted anchors"),
        ):
            if mask.any():
                panels[0].hist(
                    np.clip(public[mask], *span), bins, color=colour, alpha=0.65, label=label
                )
        panels[0].legend(
            frameon=False, fontsize=8.5, loc="upper right", ncols=2, bbox_to_anchor=(1, 1.4)
        )
        _name(panels[0], "public anchors")
        total = np.sum([site["counts"] for site in sites], axis=0) if sites else np.zeros(0)
        for axes, name, counts in zip(
            panels[1:],
            ["all silos", *(site["site"] for site in sites)],
            [total, *(site["counts"] for site in sites)],
            strict=True,
        ):
            if sites:
                _steps(axes, np.array(sites[0]["edges"]), np.array(counts), bins)
            _name(axes, str(name))
        for axes, name in zip(panels, ["", "", *(site["site"] for site in sites)], strict=True):
            axes.set_yticks([])
            axes.spines["left"].set_visible(False)
            axes.set_xlim(*span)
            cut = own.get(name, threshold)
            if cut is not None:
                axes.axvline(cut, color=CUT, linewidth=1.4, linestyle=(0, (4, 2)))
        panels[-1].set_xlabel(f"score of {record['scorer']['name']} ({record['scorer']['unit']})")
        return svg(figure, "histograms")


def lines(
    series: Mapping[str, Sequence[float]], *, x: str, y: str, name: str, start: int = 1
) -> str:
    """One line per name over start, start + 1, …; names stand beside in the lines' colours."""
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(7.6, 2.9), layout="constrained")
        axes = figure.add_subplot()
        drawn: list[Line2D] = []
        for place, values in enumerate(series.values()):
            colour = LINES[place % len(LINES)]
            steps = np.arange(start, start + len(values))
            drawn += axes.plot(
                steps, values, color=colour, linewidth=1.8, marker="o", markersize=3.2
            )
        axes.grid(axis="y", color=GRID, linewidth=0.8)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_xlabel(x)
        axes.set_ylabel(y)
        # Handles and names are given, for a label that begins with "_" would be left out.
        axes.legend(
            drawn, list(series), frameon=False, fontsize=8.5, loc="upper left",
            bbox_to_anchor=(1.0, 1.0),
        )  # fmt: skip
        return svg(figure, name)


def arm_bars(arms: Mapping[str, Tree], initial: float | None) -> str:
    """Evaluation loss of every arm after training; the untrained adapter's as a line."""
    with mpl.rc_context(_STYLE):
        named = {arm: result for arm, result in arms.items() if result["eval_loss"] is not None}
        figure = Figure(figsize=(7.6, 0.42 * max(len(named), 1) + 0.9), layout="constrained")
        axes = figure.add_subplot()
        for place, result in enumerate(named.values()):
            axes.plot(
                result["eval_loss"], place, "o", color=LINES[place % len(LINES)], markersize=8
            )
            _label(axes, result["eval_loss"], place, f"{result['eval_loss']:.4f}", away=8)
        if initial is not None:
            axes.axvline(initial, color=MUTED, linewidth=1, linestyle=":")
            axes.text(initial, -0.75, "untrained", ha="right", fontsize=8.5, color=MUTED)
        axes.set_yticks(range(len(named)), list(named))
        axes.set_ylim(len(named) - 0.4, -1.0)
        axes.grid(axis="x", color=GRID, linewidth=0.8)
        axes.set_xlabel("evaluation loss, nats per token (left is better)")
        return svg(figure, "arms")


def scorer_bars(figures: Mapping[str, Tree]) -> str:
    """Pooled AUROC of every scorer, best first."""
    ordered = sorted(figures.items(), key=lambda item: -item[1]["auroc"])
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(7.6, 0.3 * len(ordered) + 0.9), layout="constrained")
        axes = figure.add_subplot()
        for place, (name, values) in enumerate(ordered):
            colour = CLEAN if name == next(iter(figures)) else PRIVATE
            axes.barh(place, values["auroc"], color=colour, height=0.62)
            _label(axes, values["auroc"], place, f"{values['auroc']:.3f}")
        axes.axvline(0.5, color=INK, linewidth=0.9, zorder=1.5)
        axes.set_yticks(range(len(ordered)), [name for name, _ in ordered])
        axes.invert_yaxis()
        axes.set_xlim(0, 1.08)
        axes.set_xlabel("AUROC, clean against corrupted (line: chance)")
        return svg(figure, "scorers")


def seconds_bars(phases: Sequence[Tree]) -> str:
    """Seconds of every phase, all its rounds together."""
    spent: dict[str, float] = {}
    for phase in phases:
        spent[phase["phase"]] = spent.get(phase["phase"], 0.0) + phase["seconds"]
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(7.6, 0.3 * len(spent) + 0.9), layout="constrained")
        axes = figure.add_subplot()
        axes.barh(range(len(spent)), list(spent.values()), color=PRIVATE, height=0.62)
        for place, seconds in enumerate(spent.values()):
            _label(axes, seconds, place, f"{seconds:.1f} s")
        axes.set_yticks(range(len(spent)), [name.replace("_", " ") for name in spent])
        axes.invert_yaxis()
        axes.margins(x=0.12)
        axes.set_xlabel("seconds")
        return svg(figure, "seconds")


def svg(figure: Figure, name: str) -> str:
    """The figure as an ``<svg>`` element whose ids begin with its name."""
    buffer = io.StringIO()
    with mpl.rc_context({"svg.hashsalt": name, "svg.fonttype": "none"}), warnings.catch_warnings():
        # Text stays text, so the browser's fonts draw what matplotlib's own font lacks.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure.savefig(buffer, format="svg", metadata={"Date": None}, transparent=True)
    text = buffer.getvalue()
    element = text[text.index("<svg") :]
    for attribute in ('id="', 'href="#', "url(#"):
        element = element.replace(attribute, f"{attribute}{name}-")
    return element.replace("'DejaVu Sans'", "Inter, Arial, 'DejaVu Sans', sans-serif")


def _span(record: Tree) -> tuple[float, float]:
    values = [*record["public"]["scores"]]
    for site in record["sites"]:
        values += [site["edges"][0], site["edges"][-1]] if site["edges"] else []
    low, high = np.quantile(values, [0.02, 0.98]) if values else (0.0, 1.0)
    pad = 0.05 * (high - low) or 1.0
    return float(low - pad), float(high + pad)


def _steps(axes: Axes, edges: np.ndarray, counts: np.ndarray, bins: np.ndarray) -> None:
    """Cells of a summary, spread evenly over coarser bins of equal width."""
    low, high = bins[0], bins[-1]
    bounds = np.concatenate([[min(low, edges[0])], edges, [max(high, edges[-1])]])
    cumulative = np.concatenate([[0.0], np.cumsum(counts)])
    heights = np.diff(np.interp(bins, bounds, cumulative))
    axes.stairs(heights, bins, fill=True, color=PRIVATE, alpha=0.8)


def _name(axes: Axes, name: str) -> None:
    axes.set_title(name, loc="left", fontsize=9.5, pad=2)


def _label(axes: Axes, x: float, y: float, text: str, *, away: float = 4.0) -> None:
    """Text right of a point; on white, so that a line behind it does not cross it."""
    axes.annotate(
        text, (x, y), xytext=(away, 0), textcoords="offset points", va="center", fontsize=8.5,
        bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.8},
    )  # fmt: skip
