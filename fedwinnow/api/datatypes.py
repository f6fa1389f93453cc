"""The nouns of the public API, and the errors that it raises."""

from fedwinnow.curation import errors
from fedwinnow.curation.config.run import RunConfig
from fedwinnow.curation.datatypes import (
    Adapter,
    PublicRows,
    Sample,
    Scores,
    ScoreSummary,
    Selection,
    SignalTable,
)
from fedwinnow.server.report.record import RunRecord

__all__ = [
    "Adapter",
    "PublicRows",
    "RunConfig",
    "RunRecord",
    "Sample",
    "ScoreSummary",
    "Scores",
    "Selection",
    "SignalTable",
    "errors",
]
