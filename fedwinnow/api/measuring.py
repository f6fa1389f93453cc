"""Open samples, and measure them against public anchors."""

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from fedwinnow.api.settings import changed
from fedwinnow.client.data import samples as data
from fedwinnow.client.data.anchors import calibration_by, corrupted_references, split_by
from fedwinnow.client.data.column_guess import guess_columns, guess_domain
from fedwinnow.client.data.samples import Samples
from fedwinnow.client.data_files.readers import columns_of
from fedwinnow.client.measuring import measuring_pass
from fedwinnow.client.measuring.backends import reference_backend
from fedwinnow.client.measuring.pass_options import OnProgress, PassOptions
from fedwinnow.client.measuring.references import References, reference_state
from fedwinnow.client.runs.site_run import take_rows
from fedwinnow.curation.adapters.checks import adapter_hash
from fedwinnow.curation.config.run import RunConfig
from fedwinnow.curation.config.scoring import ColumnsSection
from fedwinnow.curation.datatypes import PublicRows, Sample, SignalTable, Status, Trajectory
from fedwinnow.curation.errors import DataError, ModelError
from fedwinnow.curation.model.lora_model import LoadedModel, get_adapter
from fedwinnow.strategies.run_plugins import unmeasured_columns

logger = logging.getLogger(__name__)


def open_samples(
    source: str | Path,
    *,
    prompt: str = "",
    prompt_template: str = "",
    response: str = "",
    messages: str = "",
    tools: str = "",
    domain: str | None = None,
    labels: Sequence[str] = (),
) -> Samples:
    """Open a data file; every row is checked, and texts stay on the disk.

    Columns that are not named are guessed by the names that data sets commonly use, as by
    ``fedwinnow init``.

    Args:
        source: A file (JSON, JSONL, CSV, TSV or Parquet; text may be gzipped), a folder of such
            files or of a data set, or a hub name; ``:split`` may follow a folder or a hub name.
        prompt: Column of the user's text.
        prompt_template: Prompt made of several columns, as "{question} {context}", in place of
            ``prompt``.
        response: Column of the answer; goes with ``prompt``.
        messages: Column of chat messages, in place of these.
        tools: Column of the tools that the model may call.
        domain: Column of the domain; "" for none, None to guess.
        labels: Further columns to carry as labels (licence, origin, …).

    Returns:
        A sequence of :class:`Sample`, read from the disk one by one. Its ``reading`` says what was
        read, its ``notes`` what was not, and is logged as a warning.

    Raises:
        ConfigError: the template names no column, or goes with ``messages``.
        DataError: the source is missing, empty or broken, or no columns can be guessed; names file,
            line and column.
        OutputError: the temporary copy cannot be written.
    """
    place, named = str(source), prompt or prompt_template or response or messages
    names = () if named and domain is not None else columns_of(place)
    columns = ColumnsSection(
        prompt=prompt or "prompt",
        prompt_template=prompt_template,
        response=response or "response",
        messages=messages,
    )
    columns = columns if named else guess_columns(names, place)
    held = guess_domain(names) if domain is None else domain
    columns = replace(columns, domain=held, labels=tuple(labels), tools=tools or columns.tools)
    samples = data.open_samples(place, columns)
    for note in samples.notes:
        logger.warning("%s", note)
    return samples


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class PublicMeasurement:
    """Signals of public anchors and of their corruptions, and what :func:`measure` needs to match.

    ``rows`` is what a scorer is fitted on.
    """

    tables: Trajectory
    """Every calibration row, by ascending checkpoint."""
    kinds: tuple[str, ...]
    """Per calibration row: "clean" or the kind of corruption."""
    parents: tuple[str, ...]
    """Per calibration row: id of its clean anchor."""
    columns: frozenset[str]
    """Signals of the last checkpoint."""
    references: References
    """Mean gradients and states of the reference anchors at the last checkpoint."""
    contrast: tuple[Sample, ...]
    """Public samples whose prompts stand against each response."""
    config: RunConfig
    base: str
    """Fingerprint of the base model."""
    adapter: str
    """Hash of the adapter of the last checkpoint."""

    @property
    def rows(self) -> PublicRows:
        """Return the rows that could be measured at every checkpoint, for ``scorer.fit``."""
        usable = np.logical_and.reduce([table.status == Status.OK for table in self.tables])
        keep = np.flatnonzero(usable).tolist()
        return PublicRows(
            trajectory=tuple(take_rows(table, keep) for table in self.tables),
            kinds=tuple(self.kinds[i] for i in keep),
            parents=tuple(self.parents[i] for i in keep),
        )

    def __repr__(self) -> str:
        names = ", ".join(sorted(self.columns)) or "none"
        return f"PublicMeasurement({self.rows!r}, columns: {names}, base {self.base[:12]})"


def measure_public(
    model: LoadedModel,
    anchors: Sequence[Sample],
    *,
    columns: Iterable[str],
    config: RunConfig | None = None,
    overrides: Sequence[str] = (),
    after: PublicMeasurement | None = None,
    learning_rate: float = 0.0,
) -> PublicMeasurement:
    """Measure public anchors and seeded corruptions of them, as every site of a run would.

    Anchors are split by domain into a reference part, whose mean gradients and states are what
    samples are measured against, a calibration part, which is corrupted, and a hold-out. Gradient
    columns (``dot``, ``adam_dot`` …) need a trained adapter: with B = 0 they are refused.

    Args:
        model: From :func:`load_model`.
        anchors: Clean public samples.
        columns: Names of signals, such as ``scorer.columns``; see ``curation/signal_columns.py``.
        config: Gives ``run.seed``, ``model.max_length`` and ``system_prompt`` (tokens),
            ``anchors``, ``measuring``; None: the defaults of a scenario, or those of ``after``.
        overrides: Lines ``section.key=value`` that win over it, such as "model.max_length=256".
        after: The measurement at the checkpoint before, for scorers that follow a trajectory.
        learning_rate: Mean learning rate of the training since then; weights trajectory sums.

    Returns:
        The public rows, their signals of shape (rows,) or (rows, domains) in float32, and what
        :func:`measure` needs to measure samples alike.

    Raises:
        ConfigError: an override is wrong.
        DataError: a domain has too few anchors for the three parts, none can be corrupted, or
            ``after`` measured other anchors.
        ModelError: a column is unknown, or the adapter cannot give it (B = 0).
        NonFiniteError: a reference anchor gives a NaN or an infinity.
    """
    settings = changed(config or (after.config if after else RunConfig()), overrides)
    section, seed, backend = settings.anchors, settings.run.seed, settings.measuring.backend
    wanted = frozenset([columns] if isinstance(columns, str) else columns)
    wanted -= unmeasured_columns(settings.terms())
    split = split_by(section, anchors, seed)
    rows = calibration_by(section, split, seed)
    spoiled = "representation_corrupted" in wanted
    references = reference_state(
        model,
        split.reference,
        PassOptions.of(settings.model, settings.measuring),
        columns=wanted,
        corrupted=corrupted_references(section, split, seed) if spoiled else (),
        way=reference_backend(backend, model),
        layers=settings.measuring.layers,
    )
    begun = PublicMeasurement(
        tables=() if after is None else after.tables,
        kinds=rows.kinds,
        parents=rows.parents,
        columns=wanted,
        references=references,
        contrast=split.reference,
        config=settings,
        base=model.fingerprint,
        adapter=adapter_hash(get_adapter(model)),
    )
    table = _table(model, rows.samples, begun, checkpoint=len(begun.tables), rate=learning_rate)
    if after is not None and not _same_rows(after, begun, table):
        message = (
            "measure_public: expected the anchors, the settings and the base model of after=, got "
            "others; measure both checkpoints alike"
        )
        raise DataError(message)
    return replace(begun, tables=(*begun.tables, table))


def measure(
    model: LoadedModel,
    samples: Sequence[Sample],
    *,
    like: PublicMeasurement,
    on_progress: OnProgress | None = None,
) -> SignalTable:
    """Measure samples as the public anchors were measured: same signals, references and settings.

    Args:
        model: The model that ``like`` was measured with, at the same adapter.
        samples: From :func:`open_samples`, or a list; only their tokens are held.
        like: What :func:`measure_public` returned.
        on_progress: Called with (sample passes done, all of them).

    Returns:
        One row per sample in their order; signals in float32, of shape (samples,) or (samples,
        domains), NaN in every column of a row whose status is not OK.

    Raises:
        ModelError: the model's base or adapter is another one, so that numbers would not compare.
        DataError: there is no other public prompt to contrast with.
    """
    held = (model.fingerprint, adapter_hash(get_adapter(model)))
    if held != (like.base, like.adapter):
        what = "base" if held[0] != like.base else "adapter"
        message = (
            f"measure: expected the {what} that the public anchors were measured with, got "
            "another; measure them anew with this model (measure_public)"
        )
        raise ModelError(message)
    last = like.tables[-1]
    return _table(
        model, samples, like,
        checkpoint=last.checkpoint, rate=last.learning_rate, on_progress=on_progress,
    )  # fmt: skip


def _table(
    model: LoadedModel,
    samples: Sequence[Sample],
    like: PublicMeasurement,
    *,
    checkpoint: int,
    rate: float,
    on_progress: OnProgress | None = None,
) -> SignalTable:
    section = like.config.measuring
    return measuring_pass.measure(
        model,
        samples,
        PassOptions.of(like.config.model, section),
        columns=like.columns,
        checkpoint=checkpoint,
        references=like.references,
        contrast=like.contrast,
        contrast_prompts=section.contrast_prompts,
        learning_rate=rate,
        on_progress=on_progress,
        backend=section.backend,
    )


def _same_rows(after: PublicMeasurement, begun: PublicMeasurement, table: SignalTable) -> bool:
    """Whether two checkpoints hold the same rows of the same base."""
    before = (after.base, after.kinds, after.parents, after.tables[-1].ids)
    return before == (begun.base, begun.kinds, begun.parents, table.ids)
