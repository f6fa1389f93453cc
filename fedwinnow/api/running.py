"""Run a whole federation, or one silo alone, on this machine."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from fedwinnow.api.settings import changed
from fedwinnow.curation.config import load_files
from fedwinnow.curation.config.run import RunConfig
from fedwinnow.server.report.record import RunRecord, read_record
from fedwinnow.server.run.driver import Progress
from fedwinnow.simulations import single_silo
from fedwinnow.simulations.datasets.demo_scenario import local_model
from fedwinnow.simulations.runtimes import in_process
from fedwinnow.simulations.single_silo import ScoreResult


def load_scenario(path: str | Path, *, overrides: Sequence[str] = ()) -> RunConfig:
    """Read a scenario; its paths may be relative to the file.

    Args:
        path: A TOML file with the sections of :class:`RunConfig`.
        overrides: Lines ``section.key=value`` that win over the file.

    Returns:
        The configuration, frozen; ``dataclasses.replace`` changes it.

    Raises:
        ConfigError: the file, a key, a type or a value is wrong, or no site is named.
    """
    return load_files.load_scenario(Path(path), overrides)


def simulate(
    scenario: str | Path | RunConfig,
    *,
    overrides: Sequence[str] = (),
    resume: bool = False,
    progress: Progress | None = None,
) -> RunRecord:
    """Run a whole federation in this process.

    Args:
        scenario: A TOML file, or a configuration.
        overrides: Lines ``section.key=value`` that win over it.
        resume: Go on from the last committed phase of the run folder.
        progress: Called with every delivery; None: silent.

    Returns:
        The record of the run, as ``record.json`` in its folder; losses in nats, times in seconds.

    Raises:
        InputError: the scenario, its data, its model or the run folder is at fault.
        RunError: the run could not go on.
    """
    if isinstance(scenario, RunConfig):
        config = changed(scenario, overrides)
    else:
        config = load_scenario(scenario, overrides=overrides)
    config = replace(config, model=local_model(config.model))
    folder = in_process.simulate(config, resume=resume, progress=progress)
    return read_record(folder / "record.json")


def score_silo(
    source: str | Path,
    anchors: str | Path,
    model: str | Path,
    *,
    out: str | Path = "scores.parquet",
    kept: str | Path | None = None,
    overrides: Sequence[str] = (),
    progress: Progress | None = None,
) -> ScoreResult:
    """Score and filter one data set against public anchors, as a federation of one member.

    Args:
        source: Data file or folder (docs/data.md); columns are guessed.
        anchors: Clean public samples in the same columns.
        model: Hub name or folder.
        out: Parquet file to write: id, signals by checkpoint, scores, kept and reason of each row.
        kept: File for the rows that are kept, in the format of its ending; None for none.
        overrides: Lines ``section.key=value``, such as "scorer.name=perplexity".
        progress: Called with every delivery; None: silent.

    Returns:
        How many samples were kept, the threshold in the scorer's unit (None where all pass), and
        the evidence for it.

    Raises:
        ConfigError: an override is wrong.
        DataError: a file or line is at fault, or samples overlap the anchors.
        ModelError: the model cannot be loaded.
        OutputError: ``out`` cannot be written, or would replace what is read.
    """
    config = single_silo.score_config(Path(source), Path(anchors), str(model), overrides=overrides)
    target = None if kept is None else Path(kept)
    return single_silo.score_silo(config, Path(out), kept=target, progress=progress)
