"""Data types that the steps exchange: frozen, named, independent of model and transport.

The data flow: ``Sample`` → ``SignalTable`` → ``Scores`` → ``ScoreSummary`` → threshold →
``Selection`` → ``Adapter`` → merged ``Adapter``. Only summaries, adapters and rows of PUBLIC
anchor samples ever leave a site.

What is printed of one may land in a log: a ``repr`` counts and names, and shows no text, no score
and no array.
"""

import enum
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
from jaxtyping import Float, Int8, Int64
from torch import Tensor

from fedwinnow.curation.tabular import as_columns, as_frame, as_table, counted

Scores: TypeAlias = Float[np.ndarray, " samples"]
"""One float per sample; higher is better, whatever the scorer. NaN only where status is not OK."""
_FINGERPRINT = re.compile(r"[0-9a-f]{64}")
"""Form of a SHA-256, which names a base model by its weights."""


class Turn(NamedTuple):
    """One turn of a conversation."""

    role: str
    """"system", "user", "assistant" or "tool"; a template may know further roles."""
    content: str
    details: str = ""
    """What the turn holds beside its text (tool calls, a tool's name), as a JSON object; ""."""


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Sample:
    """One training example of a silo or one public anchor.

    A conversation is read in order: ``history``, ``prompt``, ``followup``, ``response``.
    """

    id: str
    """Hash of all that the model reads and learns: equal content, equal id."""
    prompt: str
    """Text of the last user turn before the response."""
    response: str
    """Text of the last assistant turn."""
    domain: str = ""
    history: tuple[Turn, ...] = ()
    """Turns before the prompt."""
    followup: tuple[Turn, ...] = ()
    """Turns between prompt and response: tool calls, their results, a later system turn."""
    response_details: str = ""
    """What the last assistant turn holds beside its text, as a JSON object; ""."""
    tools: str = ""
    """Tools that the model may call, as a JSON list; "" for none."""
    train_on: Literal["last", "all"] = "last"
    """Assistant turns that the loss covers: the last, or every one."""
    labels: Mapping[str, str] = field(default_factory=dict)
    """Free labels of licence and origin; in a simulation also the planted truth."""

    @property
    def conversation(self) -> tuple[Turn, ...]:
        """Return every turn in order, the response last."""
        asked = Turn("user", self.prompt)
        answered = Turn("assistant", self.response, self.response_details)
        return (*self.history, asked, *self.followup, answered)

    def __repr__(self) -> str:
        others = len(self.history) + len(self.followup)
        turns = f", with {counted(others, 'other turn')}" if others else ""
        return (
            f"Sample({self.id}, prompt of {counted(len(self.prompt), 'character')}, "
            f"response of {counted(len(self.response), 'character')}{turns})"
        )


class Status(enum.IntEnum):
    """Reason why a sample has or lacks signals."""

    OK = 0
    NO_TARGET = 1
    """No response token is left to compute a loss on."""
    NON_FINITE = 2
    """The model returned a NaN or an infinity for this sample."""
    REFUSED = 3
    """The model's chat template does not render this sample's turns."""


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class SignalTable:
    """Signals of every sample at one checkpoint: numbers, never a gradient, never a text.

    Rows whose ``status`` is not ``OK`` hold NaN in every column and no scorer ever sees them.
    """

    ids: tuple[str, ...]
    domains: tuple[str, ...]
    checkpoint: int
    """0 for the untrained adapter, t for the adapter after warm-up round t."""
    status: Int8[np.ndarray, " samples"]
    columns: Mapping[str, Float[np.ndarray, "samples ..."]]
    """Column name → float32 array of shape (samples,) or (samples, references)."""
    references: tuple[str, ...] = ()
    """Names (domains) of the reference gradients along the second axes."""
    reference_gram: Float[np.ndarray, "references references"] = field(
        default_factory=lambda: np.zeros((0, 0), dtype=np.float64)
    )
    """Dot products of the reference gradients with each other, float64."""
    learning_rate: float = 0.0
    """Mean learning rate of the training that led to this checkpoint; weights trajectory sums."""

    def flat_columns(self) -> dict[str, Any]:
        """Return name → one-dimensional column: id, domain, status, then signals by name.

        A signal with several references becomes a column ``name.reference`` for each.
        """
        signals = as_columns(self.columns, self.references)
        return {"id": self.ids, "domain": self.domains, "status": self.status} | signals

    def to_arrow(self) -> Any:  # noqa: ANN401 - pyarrow has no types
        """Return a ``pyarrow.Table``, one row per sample; columns of :meth:`flat_columns`."""
        return as_table(self.flat_columns())

    def to_pandas(self) -> Any:  # noqa: ANN401 - pandas has no types here
        """Return the table of :meth:`to_arrow` as a ``pandas.DataFrame``.

        Raises:
            ConfigError: pandas is not installed.
        """
        return as_frame(self.to_arrow())

    def __repr__(self) -> str:
        names = ", ".join(sorted(self.columns)) or "none"
        number = counted(len(self.ids), "sample")
        return f"SignalTable({number}, checkpoint {self.checkpoint}, columns: {names})"


Trajectory: TypeAlias = tuple[SignalTable, ...]
"""Tables of the same samples in the same order, by ascending checkpoint."""


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class PublicRows:
    """Signals of the public calibration anchors and of their seeded corruptions."""

    trajectory: Trajectory
    kinds: tuple[str, ...]
    """Per row: ``"clean"`` or the name of the corruption."""
    parents: tuple[str, ...]
    """Per row: id of the clean anchor that it is or was made from (one cross-validation fold)."""

    def scored(self, scores: Scores) -> "PublicScores":
        """Return scores of these rows, one each, with their truth: what a threshold rule reads."""
        return PublicScores(scores=scores, kinds=self.kinds, domains=self.trajectory[0].domains)

    def to_arrow(self) -> Any:  # noqa: ANN401 - pyarrow has no types
        """Return a ``pyarrow.Table``, one row per public row: id, domain, kind, parent, signals.

        A signal, and the status, of checkpoint t is the column ``name@t``.
        """
        first = self.trajectory[0]
        columns: dict[str, Any] = {"id": first.ids, "domain": first.domains}
        columns |= {"kind": self.kinds, "parent": self.parents}
        for table in self.trajectory:
            signals = as_columns(table.columns, table.references)
            for name, values in ({"status": table.status} | signals).items():
                columns[f"{name}@{table.checkpoint}"] = values
        return as_table(columns)

    def to_pandas(self) -> Any:  # noqa: ANN401 - pandas has no types here
        """Return the table of :meth:`to_arrow` as a ``pandas.DataFrame``.

        Raises:
            ConfigError: pandas is not installed.
        """
        return as_frame(self.to_arrow())

    def __repr__(self) -> str:
        clean, number = self.kinds.count("clean"), len(self.kinds)
        points = ", ".join(str(table.checkpoint) for table in self.trajectory)
        return (
            f"PublicRows({counted(number, 'row')}, {clean} clean and {number - clean} corrupted, "
            f"checkpoints: {points or 'none'})"
        )


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Fitted:
    """Parameters that a scorer learned from the public rows; identical at every site."""

    schema: str
    """Name and version of the layout of ``parameters``."""
    parameters: Mapping[str, Float[np.ndarray, "..."]] = field(default_factory=dict)
    """float64 arrays."""
    public_scores: Scores = field(default_factory=lambda: np.zeros(0))
    """Score of every public row; out of fold where the scorer is fitted."""
    forecast: Mapping[str, float] = field(default_factory=dict)
    """Expected quality before anything is dropped: ``auroc``, ``auroc_swap``, …, by name."""

    def __repr__(self) -> str:
        auroc = f", forecast AUROC {self.forecast['auroc']:.3f}" if "auroc" in self.forecast else ""
        schema = self.schema.partition(":")[0]
        return f"Fitted({schema}, {counted(len(self.public_scores), 'public score')}{auroc})"


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class ScoreSummary:
    """Histogram of one site's scores, or of several sites' added up."""

    edges: Float[np.ndarray, " edges"]
    """Strictly ascending, float64, in the scorer's unit."""
    counts: Float[np.ndarray, " cells"]
    """Length edges + 1: underflow, one cell between each two edges, overflow. A group
    of cells spreads its count by public mass, so counts may be fractions."""
    largest_merged: float = 0.0
    """Fullest group of several cells and what rounding hides, samples: bounds the rank error."""

    @property
    def total(self) -> float:
        """Return the number of samples behind the summary."""
        return float(self.counts.sum())

    def __repr__(self) -> str:
        span = f", edges {self.edges[0]:.4g} to {self.edges[-1]:.4g}" if len(self.edges) else ""
        cells = counted(len(self.counts), "cell")
        return f"ScoreSummary({self.total:g} samples, {cells}{span})"


@dataclass(frozen=True, slots=True, kw_only=True)
class PublicScores:
    """Scores of the public rows with their truth: the evidence of a threshold rule."""

    scores: Scores
    kinds: tuple[str, ...]
    domains: tuple[str, ...]

    @property
    def clean(self) -> Scores:
        """Return the scores of the clean rows only."""
        rows = np.array([kind == "clean" for kind in self.kinds], dtype=bool)
        found: Scores = self.scores[rows]
        return found


@dataclass(frozen=True, slots=True, kw_only=True)
class ThresholdDecision:
    """Threshold that every site applies, and the evidence for it."""

    value: float
    """Keep a sample if its score is at least this; −inf keeps all."""
    per_site: Mapping[str, float] = field(default_factory=dict)
    """Only for control rules that cut each site apart; empty means ``value`` everywhere."""
    evidence: Mapping[str, float] = field(default_factory=dict)
    """``expected_recall``, ``expected_precision``, ``clean_share``, ``rank_error`` … by name."""


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Selection:
    """Samples that a site trains on, and why it drops the others; stays at the site."""

    ids: tuple[str, ...]
    """Every sample of the silo, in data order."""
    kept: tuple[bool, ...]
    reasons: tuple[str, ...]
    """Per sample: ``""`` if kept, else why it was dropped, in plain words."""

    @property
    def count(self) -> int:
        """Return the number of samples that are kept."""
        return sum(self.kept)

    def to_arrow(self) -> Any:  # noqa: ANN401 - pyarrow has no types
        """Return a ``pyarrow.Table``, one row per sample: id, kept, reason."""
        return as_table({"id": self.ids, "kept": self.kept, "reason": self.reasons})

    def to_pandas(self) -> Any:  # noqa: ANN401 - pandas has no types here
        """Return the table of :meth:`to_arrow` as a ``pandas.DataFrame``.

        Raises:
            ConfigError: pandas is not installed.
        """
        return as_frame(self.to_arrow())

    def __repr__(self) -> str:
        return f"Selection({self.count} of {counted(len(self.ids), 'sample')} kept)"


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Adapter:
    """LoRA factors of a model: ΔW of module m is ``scales[m] · b[m] @ a[m]``.

    Factors are CPU tensors; their rank may differ between modules.
    """

    base: str
    """Fingerprint of the frozen base model."""
    a: Mapping[str, Float[Tensor, "rank inputs"]]
    b: Mapping[str, Float[Tensor, "outputs rank"]]
    scales: Mapping[str, float]

    @property
    def modules(self) -> tuple[str, ...]:
        """Return the module names in sorted order."""
        return tuple(sorted(self.a))

    def __repr__(self) -> str:
        ranks = sorted({int(self.a[name].shape[0]) for name in self.a}) or [0]
        span = f"{ranks[0]}" if len(ranks) == 1 else f"{ranks[0]} to {ranks[-1]}"
        return f"Adapter(rank {span}, {counted(len(self.a), 'module')}, {_named(self.base)})"


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class SparseAdapter:
    """A sparse difference of a model's weights (LT-SFT): few entries of some parameters.

    The difference of parameter p is ``values[p]`` at ``indices[p]`` and 0 elsewhere; on the CPU.
    """

    base: str
    """Fingerprint of the frozen base model."""
    indices: Mapping[str, Int64[Tensor, " entries"]]
    """Strictly ascending places in the flattened (row-major) parameter."""
    values: Mapping[str, Float[Tensor, " values"]]
    shapes: Mapping[str, tuple[int, ...]]
    """Shape of each parameter in the base."""

    @property
    def parameters(self) -> tuple[str, ...]:
        """Return the parameter names in sorted order."""
        return tuple(sorted(self.indices))

    def __repr__(self) -> str:
        entries = sum(len(self.indices[name]) for name in self.indices)
        return (
            f"SparseAdapter({counted(entries, 'entry', 'entries')} of "
            f"{counted(len(self.indices), 'parameter')}, {_named(self.base)})"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Metrics:
    """Evaluation sums and counts: never means of means."""

    loss_sum: float = 0.0
    """Sum over samples of the mean token loss of the response, nats."""
    samples: int = 0

    @property
    def loss(self) -> float:
        """Return the mean loss of a sample, nats.

        Raises:
            ZeroDivisionError: there is no sample; so the result is never NaN.
        """
        if self.samples == 0:
            message = "loss of 0 samples is not defined; check samples before asking for it"
            raise ZeroDivisionError(message)
        return self.loss_sum / self.samples


def _named(base: str) -> str:
    """The base of an adapter in a few words: 12 digits of a fingerprint, or the whole name."""
    return f"base {base[:12] if is_fingerprint(base) else base or 'not named'}"


def is_fingerprint(base: str) -> bool:
    """Return whether a base is named by the hash of its weights, not by a folder or hub name."""
    return _FINGERPRINT.fullmatch(base) is not None
