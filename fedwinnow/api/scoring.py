"""From scores to a summary, its picture, and what is kept."""

import math

from matplotlib.figure import Figure

from fedwinnow.curation.datatypes import Scores, ScoreSummary, Selection, SignalTable
from fedwinnow.curation.errors import DataError, NonFiniteError
from fedwinnow.curation.scores import histogram, selection
from fedwinnow.curation.scores.histogram_edges import Edges, edges_from_public
from fedwinnow.server.report.chart_style import WIDTH, svg_element
from fedwinnow.server.report.charts import summary_figure


def edges(public_scores: Scores, *, unit: str, bins: int = 256) -> Edges:
    """Compute the edges of a histogram of scores from public scores alone.

    Args:
        public_scores: Of the public rows, shape (rows,): ``fitted.public_scores``.
        unit: ``scorer.unit``; edges of a "probability" are equal steps on the logit scale.
        bins: Cells between underflow and overflow, at least 2.

    Returns:
        Ascending edges in the scorer's unit, shape (edges,), float64, the same for the same scores.

    Raises:
        EmptySummaryError: no public row has a score.
        NonFiniteError: a public score is infinite.
    """
    return edges_from_public(public_scores, bins=bins, probability=unit == "probability")


def summarise(scores: Scores, edges: Edges, *, smallest_cell: int = 5) -> ScoreSummary:
    """Count scores in the cells of a histogram; told as a simulated site tells them.

    Args:
        scores: Shape (samples,); NaN, no score, is left out.
        edges: From :func:`edges`.
        smallest_cell: Samples that a told group of cells must hold, at least 1; smaller ones
            are told as 0. Cells are grouped by their number and the number of samples alone.

    Returns:
        Counts of shape (edges + 1,); fractions where cells of a group share their count.

    Raises:
        NonFiniteError: a score is infinite.
        ProtocolError: ``smallest_cell`` is below 1, or the edges do not ascend.
    """
    return histogram.summarise(scores, edges, smallest_cell=smallest_cell)


def select(table: SignalTable, scores: Scores, threshold: float) -> Selection:
    """Keep a sample if its score is at least the threshold.

    Args:
        table: Of the samples; a sample without signals is dropped, and the reason says why.
        scores: Shape (samples,), in the table's order.
        threshold: In the scorer's unit; −inf keeps every sample with a score.

    Returns:
        Whether each sample is kept, and in words why not.

    Raises:
        DataError: there are not as many scores as samples.
        NonFiniteError: the threshold is NaN.
    """
    if len(scores) != len(table.ids):
        message = (
            f"select: expected a score for each of {len(table.ids)} samples, got {len(scores)}; "
            "give the table that was scored"
        )
        raise DataError(message)
    return selection.select_above(table.ids, scores, table.status, threshold)


class NotebookFigure(Figure):
    """A matplotlib figure that a notebook shows by itself, with or without pyplot."""

    def _repr_svg_(self) -> str:
        return svg_element(self, "summary")


def draw(summary: ScoreSummary, threshold: float | None = None) -> Figure:
    """Draw a summary of scores, and the threshold as a dashed line.

    Args:
        summary: From :func:`summarise`, or several added up.
        threshold: In the scorer's unit; None, or an infinite one, is not drawn.

    Returns:
        A matplotlib figure, which a notebook shows; ``.savefig(path)`` writes it.

    Raises:
        NonFiniteError: the threshold is NaN.
    """
    if threshold is not None and math.isnan(threshold):
        message = "draw: expected a threshold, None, −inf or inf, got NaN; repair the threshold"
        raise NonFiniteError(message)
    figure = NotebookFigure(figsize=(WIDTH, 2.4), layout="constrained")
    summary_figure(summary, threshold, figure)
    return figure
