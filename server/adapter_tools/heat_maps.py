"""Draw two adapters' difference as heat maps, layers by modules: norms, angles and energies."""

from collections.abc import Mapping

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from fedwinnow.curation.adapters.comparison import Comparison, layer_sort_key, module_place
from fedwinnow.server.report.chart_style import (
    INK,
    MUTED,
    SIZE,
    SMALL,
    chart_style,
    fix_ticks,
    svg_element,
)

_COLOURS = mpl.colormaps["YlGnBu"].with_extremes(bad="#dfe3e6")
_LEGIBLE = 0.55
"""Share of a colour scale above which numbers are written in white."""
_CELLS = 400
"""Largest number of cells in a map that shows each cell's number."""
_ACROSS = 3
"""Maps in a row."""
_NOTE = (
    "A, B as in the title.\n\nGrey: only one adapter\nchanges the module, or a\nproduct is 0.\n\n"
    "Energies are shares, at\na common rank:\noutside what any output\nspace of it holds;\n"
    "discarded by a merge to\nit with equal weights."
)
Values = Mapping[str, float | None]


def heat_maps(found: Comparison, *, title: str) -> str:
    """Draw both norms, the products' angle and the energies outside a common rank, as SVG text.

    Grey cells: a module that only one adapter changes, or whose product is 0.
    """
    return svg_element(heat_map_figure(found, title=title), "difference")


@chart_style(size=SMALL)
def heat_map_figure(found: Comparison, *, title: str) -> Figure:
    """Draw the figure of :func:`heat_maps`, large enough for every label."""
    modules = {**dict.fromkeys(name for alone in found.alone for name in alone), **found.modules}
    layers, columns = axes_of(list(modules))
    maps = _maps(found)
    width, height = 1.6 + 0.62 * len(columns), max(2.6, 1.1 + 0.27 * len(layers))
    rows = len(maps) // _ACROSS + 1  # the last panel holds the note
    size = (max(3.0, width) * _ACROSS, height * rows + 0.5)
    figure = Figure(figsize=size, layout=ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.12))
    panels = list(figure.subplots(rows, _ACROSS, squeeze=False).flat)
    for (label, (values, top, form)), panel in zip(maps.items(), panels, strict=False):
        _map(panel, values, layers, columns, top=top, label=label, form=form)
    last = panels[len(maps)]
    last.axis("off")
    last.text(0, 1, _NOTE, transform=last.transAxes, va="top", color=MUTED)
    figure.suptitle(title, color=INK, fontsize=SIZE, wrap=True)
    fix_ticks(*figure.axes)
    return figure


def _maps(found: Comparison) -> dict[str, tuple[Values, float, str]]:
    """Return map title → values by module, top of the colour scale, and number format."""
    norms: list[dict[str, float]] = [
        {name: one.norms[side] for name, one in found.modules.items()} | found.alone[side]
        for side in (0, 1)
    ]
    largest = max((v for side in norms for v in side.values()), default=0.0)
    angles = {name: one.angle for name, one in found.modules.items()}
    outside = {name: one.outside for name, one in found.modules.items()}
    discarded = {name: one.discarded for name, one in found.modules.items()}
    energy = max([0.01, *(v for side in (outside, discarded) for v in side.values() if v)])
    return {
        "norm ‖ΔW‖ of A": (norms[0], largest or 1.0, ".3g"),
        "norm ‖ΔW‖ of B": (norms[1], largest or 1.0, ".3g"),
        "angle of the products, degrees": (angles, 180.0, ".0f"),
        "energy outside a common rank": (outside, energy, ".2f"),
        "energy that a merge discards": (discarded, energy, ".2f"),
    }


def axes_of(names: list[str]) -> tuple[list[str], list[str]]:
    """Return layers (by number; "–" for a module outside the layers) and modules, in order."""
    places = [module_place(name) for name in sorted(names, key=layer_sort_key)]
    return list(dict.fromkeys(layer for layer, _ in places)), sorted({m for _, m in places})


def _map(
    axes: Axes,
    values: Values,
    layers: list[str],
    modules: list[str],
    *,
    top: float,
    label: str,
    form: str,
) -> None:
    cells = np.full((len(layers), len(modules)), np.nan)
    for name, value in values.items():
        layer, module = module_place(name)
        if value is not None:
            cells[layers.index(layer), modules.index(module)] = value
    mesh = axes.pcolormesh(
        np.ma.masked_invalid(cells), cmap=_COLOURS, vmin=0, vmax=top, edgecolors="white", lw=0.8
    )
    if cells.size <= _CELLS:
        for (row, column), value in np.ndenumerate(cells):
            if not np.isnan(value):
                colour = "white" if value > _LEGIBLE * top else INK
                text = format(value, form)
                axes.text(column + 0.5, row + 0.5, text, ha="center", va="center", color=colour)
    axes.invert_yaxis()
    axes.set_title(label, color=INK, fontsize=9, loc="left")
    axes.set_yticks(np.arange(len(layers)) + 0.5, layers)
    axes.set_xticks(np.arange(len(modules)) + 0.5, modules, rotation=30, ha="right")
    axes.tick_params(length=0)
    axes.set_ylabel("layer", color=INK)
    for spine in axes.spines.values():
        spine.set_visible(False)
    bar = axes.figure.colorbar(mesh, ax=axes, pad=0.02, aspect=max(20, 2.5 * len(layers)))
    bar.outline.set_visible(False)
