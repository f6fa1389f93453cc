"""Compute selection figures against planted truth, read from the silos' folders.

Only a simulation knows this truth. A comparison scorer is cut where it keeps as many samples over
all silos as the run kept, so that its precision and recall measure the ranking alone.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from fedwinnow.client.data.samples import open_samples
from fedwinnow.client.runs.run_files import RunFiles
from fedwinnow.curation.config.run import RunConfig
from fedwinnow.curation.errors import DataError
from fedwinnow.curation.scores.ranking_metrics import auroc
from fedwinnow.server.report.comparisons import ScorerFigures, SelectionFigures


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoredTruth:
    """Scored samples of all silos with their planted truth."""

    sites: np.ndarray
    kinds: np.ndarray
    kept: np.ndarray
    scores: Mapping[str, np.ndarray]

    @property
    def clean(self) -> np.ndarray:
        """Return the mask of clean samples."""
        found: np.ndarray = self.kinds == "clean"
        return found


def selection_figures(config: RunConfig, work: Path, run: str) -> SelectionFigures | None:
    """Return the ``selection`` entry of ``summary.json``, or None where no truth is planted.

    Args:
        config: The scenario; ``study.truth`` names the label with the planted corruption.
        work: Folder of the sites' own folders.
        run: Our run id.

    Raises:
        DataError: a sample lacks the label.
    """
    if not config.study.truth:
        return None
    judged = _read(config, work, run)
    if judged.clean.all() or not judged.clean.any():
        return None
    kept = judged.kept
    own = _figures(judged, judged.scores[config.scorer.name], kept)
    comparison = {}
    for name in config.scorer.comparison:
        scores = judged.scores[name]
        order = np.argsort(-np.nan_to_num(scores, nan=-np.inf), kind="stable")
        mask = np.zeros(len(scores), dtype=bool)
        mask[order[: int(kept.sum())]] = True
        comparison[name] = _figures(judged, scores, mask)
    return SelectionFigures(
        auroc=own.auroc,
        auroc_within=own.auroc_within,
        precision=own.precision,
        recall=own.recall,
        accuracy=own.accuracy,
        f1=own.f1,
        auroc_by_corruption=own.auroc_by_corruption,
        recall_by_site=own.recall_by_site,
        comparison=comparison,
    )


def _read(config: RunConfig, work: Path, run: str) -> ScoredTruth:
    sites: list[str] = []
    kinds: list[str] = []
    kept: list[bool] = []
    scores: dict[str, list[float]] = {}
    for site in config.sites:
        files = RunFiles(work / site.name / run)
        samples = open_samples(site.data, site.columns, domain=site.domain)
        truth = {}
        for sample in samples:
            label = sample.labels.get(config.study.truth, "")
            if not label:
                message = (
                    f"{site.data}: a sample has no label {config.study.truth!r} (study.truth); "
                    "name the column in sites.columns.labels"
                )
                raise DataError(message)
            truth[sample.id] = label
        table = pq.read_table(files.scores).to_pydict()
        chosen = pq.read_table(files.selection).to_pydict()
        sites += [site.name] * len(table["id"])
        kinds += [truth[sample_id] for sample_id in table["id"]]
        kept += chosen["kept"]
        for name in (config.scorer.name, *config.scorer.comparison):
            scores.setdefault(name, []).extend(
                float("nan") if value is None else value for value in table[name]
            )
    return ScoredTruth(
        sites=np.array(sites),
        kinds=np.array(kinds),
        kept=np.array(kept, dtype=bool),
        scores={name: np.array(values) for name, values in scores.items()},
    )


def _figures(judged: ScoredTruth, scores: np.ndarray, kept: np.ndarray) -> ScorerFigures:
    clean, scored = judged.clean, ~np.isnan(scores)
    hits = float((kept & clean).sum())
    precision = hits / float(kept.sum()) if kept.any() else 0.0
    recall = hits / float(clean.sum())
    within = []
    for site in sorted(set(judged.sites.tolist())):
        mine = (judged.sites == site) & scored
        if 0 < clean[mine].sum() < mine.sum():
            within.append(auroc(scores[mine], clean[mine]))
    by_kind = {}
    for kind in sorted(set(judged.kinds.tolist()) - {"clean"}):
        these = scored & (clean | (judged.kinds == kind))
        by_kind[kind] = auroc(scores[these], clean[these])
    return ScorerFigures(
        auroc=auroc(scores[scored], clean[scored]),
        auroc_within=float(np.mean(within)) if within else None,
        precision=precision,
        recall=recall,
        accuracy=float((kept == clean).mean()),
        f1=2 * precision * recall / (precision + recall) if precision + recall > 0 else 0.0,
        auroc_by_corruption=by_kind,
        recall_by_site={
            site: float((kept & clean)[judged.sites == site].sum())
            / float(clean[judged.sites == site].sum())
            for site in sorted(set(judged.sites.tolist()))
            if clean[judged.sites == site].any()
        },
    )
