"""Give all charts one style, and render figures as SVG text that repeats bit for bit."""

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

INK, MUTED, GRID = "#24323f", "#66747f", "#dfe5e8"
CLEAN, CORRUPTED, PRIVATE, CUT = "#2f7f79", "#c8643c", "#8fa3ad", "#1d3f72"
LINES = ("#1d3f72", "#c8643c", "#2f7f79", "#8a5fa8", "#a08320", "#66747f")
WIDTH = 7.6
"""Width of a chart that fills a page, inches."""
SIZE, SMALL = 9.5, 8.5
"""Font sizes, points; the small one for legends, labels of points and crowded figures."""
_STYLE: Any = {
    "text.parse_math": False,  # a name with two dollar signs is a name
    "font.family": "DejaVu Sans",
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "text.color": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
}


@contextmanager
def chart_style(*, size: float = SIZE) -> Iterator[None]:
    """Draw in our charts' style within the block; also a decorator of a drawing function.

    Args:
        size: Font size, points.
    """
    with mpl.rc_context(_STYLE | {"font.size": size}):
        yield


def fix_ticks(*panels: Axes) -> None:
    """Give tick labels their size and colour now, as ticks are made only when a figure is saved."""
    for axes in panels:
        axes.tick_params(labelsize=mpl.rcParams["font.size"], colors=MUTED)


def svg_element(figure: Figure, name: str) -> str:
    """Return a figure as an ``<svg>`` element for our pages; its ids begin with ``name``."""
    text = _svg(figure, name, transparent=True, fonttype="none")
    element = text[text.index("<svg") :]
    for attribute in ('id="', 'href="#', "url(#"):
        element = element.replace(attribute, f"{attribute}{name}-")
    return element.replace("'DejaVu Sans'", "Inter, Arial, 'DejaVu Sans', sans-serif")


def svg_file(figure: Figure, name: str) -> str:
    """Return a figure as the text of an SVG file: on white, with letters drawn as paths."""
    return _svg(figure, name, transparent=False, fonttype="path")


def _svg(figure: Figure, name: str, *, transparent: bool, fonttype: str) -> str:
    buffer = io.StringIO()
    style: Any = {"svg.hashsalt": name, "svg.fonttype": fonttype}
    with mpl.rc_context(style), warnings.catch_warnings():
        # Where text stays text, the browser's fonts draw what matplotlib's own font lacks.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure.savefig(buffer, format="svg", metadata={"Date": None}, transparent=transparent)
    return buffer.getvalue()
