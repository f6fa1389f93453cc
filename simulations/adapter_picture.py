"""Heat maps of two adapters' difference: layers by modules, one for angles, one for energies."""

from collections.abc import Mapping

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fedwinnow.curation.comparing import Comparison, by_layer, place
from fedwinnow.server.charts import INK, MUTED, svg

_FACE = "#f2f4f5"
_LEGIBLE = 0.55
"""Share of a colour scale above which numbers are written in white."""
_CELLS = 400
"""Most cells that carry their number."""


def heat_maps(found: Comparison, *, title: str) -> str:
    """Angle between the products, and energy outside a common rank, as SVG text.

    Grey cells: a module that only one adapter changes, or whose product is 0.
    """
    angles = {name: one.angle for name, one in found.modules.items()}
    energies = {name: one.outside for name, one in found.modules.items()}
    absent = {name: None for alone in found.alone for name in alone}
    layers, modules = axes_of([*angles, *absent])
    width, height = 1.5 + 1.1 * len(modules), 1.6 + 0.32 * len(layers)
    with mpl.rc_context({"svg.fonttype": "none", "text.parse_math": False, "font.size": 8.5}):
        figure = Figure(figsize=(max(6.5, 2 * width), height), layout="constrained")
        left, right = figure.subplots(1, 2)
        _map(left, angles, layers, modules, top=180.0, label="angle of the products, degrees")
        top = max([0.01, *(v for v in energies.values() if v is not None)])
        _map(right, energies, layers, modules, top=top, label="energy outside a common rank")
        figure.suptitle(title, color=INK, fontsize=9.5)
        return svg(figure, "difference")


def axes_of(names: list[str]) -> tuple[list[str], list[str]]:
    """Layers (by number; "–" for a module outside the layers) and modules, in order."""
    places = [place(name) for name in sorted(names, key=by_layer)]
    return list(dict.fromkeys(layer for layer, _ in places)), sorted({m for _, m in places})


def _map(
    axes: Axes,
    values: Mapping[str, float | None],
    layers: list[str],
    modules: list[str],
    *,
    top: float,
    label: str,
) -> None:
    cells = np.full((len(layers), len(modules)), np.nan)
    for name, value in values.items():
        layer, module = place(name)
        if value is not None:
            cells[layers.index(layer), modules.index(module)] = value
    axes.set_facecolor(_FACE)
    mesh = axes.pcolormesh(
        np.ma.masked_invalid(cells), cmap="YlGnBu", vmin=0, vmax=top, edgecolors="white", lw=0.8
    )
    if cells.size <= _CELLS:
        for (row, column), value in np.ndenumerate(cells):
            if not np.isnan(value):
                colour = "white" if value > _LEGIBLE * top else INK
                text = f"{value:.0f}" if top > 1 else f"{value:.2f}"
                axes.text(column + 0.5, row + 0.5, text, ha="center", va="center", color=colour)
    axes.invert_yaxis()
    axes.set_yticks(np.arange(len(layers)) + 0.5, layers)
    axes.set_xticks(np.arange(len(modules)) + 0.5, modules, rotation=30, ha="right")
    axes.tick_params(length=0, colors=MUTED)
    axes.set_ylabel("layer", color=INK)
    for spine in axes.spines.values():
        spine.set_visible(False)
    bar = axes.figure.colorbar(mesh, ax=axes, shrink=0.9, pad=0.02)
    bar.set_label(label, color=INK)
    bar.outline.set_visible(False)
