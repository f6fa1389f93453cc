"""Read a run's review queue: samples that pass, and on which reviewers disagree.

The queue is for the silo's own operator alone: no message has a field for it.
"""

from dataclasses import dataclass
from pathlib import Path

from fedwinnow.client.data.samples import open_samples
from fedwinnow.client.runs import tables
from fedwinnow.client.runs.run_files import RunFiles, joined_runs
from fedwinnow.client.runs.site_run import parse_terms
from fedwinnow.curation.config.site import SiteConfig
from fedwinnow.curation.errors import DataError
from fedwinnow.curation.scores.selection import QUEUED


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """Sample that a person is to decide about."""

    row: int
    """Its first row in the site's data, from 1; 0 where it is not there any more."""
    id: str
    score: float
    """In the unit of the run's scorer; higher is better."""


def read_questions(config: SiteConfig, run: str) -> tuple[Question, ...]:
    """Return the queue of a run, best score first.

    Raises:
        DataError: there is no such run here, it has not selected yet, or its scorer asks nobody.
    """
    work = Path(config.work)
    runs = joined_runs(work)
    if run not in runs:
        message = f"run {run!r} is not in {work}; choose one of {', '.join(runs) or 'none'}"
        raise DataError(message)
    files = RunFiles(work / run)
    name = parse_terms(files.terms.read_text(encoding="utf-8")).scorer.name
    if not files.selection.exists():
        message = f"run {run!r} has not selected yet; ask again after its phase 'select'"
        raise DataError(message)
    if not files.queue.exists():
        message = f"run {run!r} asks nobody: scorer {name!r} has no queue ('committee' has one)"
        raise DataError(message)
    reasons = tables.read_reasons(files.selection)
    ids, _, scores = tables.read_scores(files.scores, name)
    samples = open_samples(config.site.data, config.site.columns, domain=config.site.domain)
    rows: dict[str, int] = {}
    for place, sample in enumerate(samples.ids, start=1):
        rows.setdefault(sample, place)
    found = [
        Question(row=rows.get(sample, 0), id=sample, score=float(score))
        for sample, score in zip(ids, scores, strict=True)
        if reasons[sample] == QUEUED
    ]
    return tuple(sorted(found, key=lambda question: (-question.score, question.id)))
