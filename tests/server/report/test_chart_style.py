"""Laws of the charts: one look, whoever draws, and the same text for the same figure."""

import matplotlib as mpl
import pytest
from matplotlib.figure import Figure
from report_record import make_record

from fedwinnow.server.report import charts
from fedwinnow.server.report.chart_style import chart_style, svg_element, svg_file

FIGURES = (
    charts.kept_figure,
    charts.score_histogram_figure,
    charts.arm_loss_figure,
    charts.scorer_auroc_figure,
    charts.phase_seconds_figure,
)


def lines(_record):
    return charts.lines_figure({"a$b$": [1.0, 2.0], "b": [2.0, 1.0]}, x="step", y="loss")


@pytest.mark.parametrize("draw", [*FIGURES, lines])
def test_figure_keeps_its_look_outside_of_the_style(draw):
    """A figure that was handed out is saved alike in a notebook's style and in ours."""
    record = make_record()
    with chart_style():
        inside = svg_element(draw(record), "same")
    with mpl.rc_context({"font.size": 20.0, "xtick.color": "red", "ytick.labelsize": 3.0}):
        figure = draw(record)
        assert isinstance(figure, Figure)
        assert svg_element(figure, "same") == inside


def test_figure_leaves_the_style_of_others_alone():
    """Drawing changes no setting of matplotlib."""
    before = dict(mpl.rcParams)
    charts.kept_figure(make_record())
    assert dict(mpl.rcParams) == before


def test_svg_repeats_and_says_no_date():
    """Twice the same text, element and file; ids of an element begin with its name."""
    record = make_record()
    for write in (svg_element, svg_file):
        one, other = (write(charts.kept_figure(record), "kept") for _ in range(2))
        assert one == other
        assert "<dc:date>" not in one
    assert svg_element(charts.kept_figure(record), "kept").startswith("<svg")
    assert 'id="kept-' in svg_element(charts.kept_figure(record), "kept")
    assert svg_file(charts.kept_figure(record), "kept").startswith("<?xml")
