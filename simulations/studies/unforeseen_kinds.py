"""Leave one kind of corruption out: refit the scorer without it and compute the AUROC on it.

This shows the effect of an unforeseen kind. Only a simulation can do it, as it knows the truth:
public rows of a kind are removed, the scorer is fitted on the rest, and the AUROC is that of the
silos' clean samples against those of the kind.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Shaped

from fedwinnow.client.data.samples import open_samples
from fedwinnow.client.runs import tables
from fedwinnow.client.runs.run_files import simulated_run_files
from fedwinnow.curation.config.identity import run_id
from fedwinnow.curation.config.run import RunConfig
from fedwinnow.curation.datatypes import PublicRows, Trajectory
from fedwinnow.curation.errors import OutputError
from fedwinnow.curation.scores.ranking_metrics import auroc
from fedwinnow.server.run.run_folder import RunFolder
from fedwinnow.server.state import RunState
from fedwinnow.strategies.interfaces.scorer import Scorer
from fedwinnow.strategies.maths.signal_features import take_samples
from fedwinnow.strategies.registry import build


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """Signals of a finished simulation and its planted truth."""

    state: RunState
    public: PublicRows
    private: tuple[Trajectory, ...]
    """One trajectory for each silo."""
    kinds: Shaped[np.ndarray, " samples"]
    """Planted kind of every private sample, silo after silo."""


def aurocs_on_unforeseen(config: RunConfig) -> Mapping[str, float]:
    """Return kind → AUROC of a finished run's scorer on that kind, fitted without it.

    The mapping is empty where no truth is planted, or where the scorer fits nothing on the kinds.

    Raises:
        OutputError: the run folder holds no finished run of these settings.
    """
    measured = read_measured(config)
    if measured is None:
        return {}
    scorer = build("scorer", config.scorer.name, config.scorer.settings)
    return aurocs_without(measured, scorer)


def aurocs_without(measured: Measured, scorer: Scorer) -> Mapping[str, float]:
    """Return kind → AUROC of a scorer on that kind, fitted without it; empty if it fits nothing."""
    clean, found = measured.kinds == "clean", {}
    known = sorted(set(measured.public.kinds) - {"clean"})
    for kind in known if len(known) > 1 else ():
        here = clean | (measured.kinds == kind)
        if not (measured.kinds == kind).any() or not clean.any():
            continue
        fitted = scorer.fit(_without(measured.public, kind))
        if not fitted.parameters:
            return {}
        scores = np.concatenate([scorer.score(one, fitted) for one in measured.private])
        usable = here & ~np.isnan(scores)
        found[kind] = auroc(scores[usable], clean[usable])
    return found


def read_measured(config: RunConfig) -> Measured | None:
    """Read the signals and truth of a finished simulation; None where no truth is planted.

    Raises:
        OutputError: the run folder holds no finished run of these settings.
    """
    folder = Path(config.run.output) / config.run.name
    state = RunFolder(folder=folder).load()
    if state is None or state.run != run_id(config):
        message = f"{folder}: expected a finished run of these settings; run the study again"
        raise OutputError(message)
    if not config.study.truth:
        return None
    private, kinds = _private(config, len(state.tables))
    return Measured(
        state=state,
        public=PublicRows(
            trajectory=tuple(state.tables), kinds=tuple(state.kinds), parents=tuple(state.parents)
        ),
        private=tuple(private),
        kinds=kinds,
    )


def _without(public: PublicRows, kind: str) -> PublicRows:
    rows = np.flatnonzero(np.array(public.kinds) != kind)
    return PublicRows(
        trajectory=take_samples(public.trajectory, rows),
        kinds=tuple(public.kinds[i] for i in rows),
        parents=tuple(public.parents[i] for i in rows),
    )


def _private(config: RunConfig, checkpoints: int) -> tuple[list[Trajectory], np.ndarray]:
    """Read the signals of every silo, and the planted truth of every sample in the same order."""
    trajectories, kinds = [], []
    for site in config.sites:
        files = simulated_run_files(config, site.name)
        trajectory = tuple(tables.read_signals(files.signals(t)) for t in range(checkpoints))
        samples = open_samples(site.data, site.columns, domain=site.domain)
        truth = {sample.id: sample.labels[config.study.truth] for sample in samples}
        trajectories.append(trajectory)
        kinds += [truth[name] for name in trajectory[0].ids]
    return trajectories, np.array(kinds, dtype=object)
