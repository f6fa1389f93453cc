"""Sections of a configuration up to the score: run, model, adapter, data, measuring, scoring.

Each field is followed by one line with its unit and range, as in ``curation/config/run.py``.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from fedwinnow.curation.config.prompt_template import template_columns
from fedwinnow.curation.config.strict_toml import OMIT_DEFAULT, require_setting
from fedwinnow.curation.errors import ConfigError

LEAST = 8
"""Fewest tokens of a sample or batch that still hold a prompt and a response."""

SettingsTable = dict[str, Any]
"""Keyword arguments of a plug-in's factory, checked against its signature by the registry."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSection:
    """Identity and reproducibility of a run."""

    name: str = "run"
    """Name of the run and of its folder: letters, digits, '-', '_' and '.'."""
    output: str = "runs"
    """Folder that holds the run folders."""
    seed: int = 0
    """Seed of every random choice, at least 0."""
    threads: int = 2
    """CPU threads of each site's arithmetic, at least 1; part of what makes a run repeatable."""
    trajectory: Literal["global", "none"] = "none"
    """"none": forward signals only; "global": warm up, measure gradients at shared checkpoints."""
    minimum_sites: int = 1
    """Sites that must answer a phase, at least 1."""

    def __post_init__(self) -> None:
        require_setting(
            "run.name",
            self.name,
            self.name != ""
            and all(c.isalnum() or c in "-_." for c in self.name)
            and self.name not in {".", ".."},
            "letters, digits, '-', '_', '.'",
        )
        require_setting("run.seed", self.seed, self.seed >= 0, "at least 0")
        require_setting("run.threads", self.threads, self.threads >= 1, "at least 1")
        require_setting(
            "run.minimum_sites", self.minimum_sites, self.minimum_sites >= 1, "at least 1"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSection:
    """The frozen base model and how text becomes tokens."""

    name: str = ""
    """Hub name or folder of the base model; a site may hold it elsewhere (site.toml)."""
    gguf_file: str = ""
    """File name of a GGUF inside the folder or hub repository; "" for ordinary weights."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Number format of the base weights; float32 on a CPU."""
    quantization: Literal["none", "4bit"] = "none"
    """"4bit" loads the base with bitsandbytes (CUDA only)."""
    max_length: int = 512
    """Longest sample in tokens, prompt and response together, at least 8."""
    system_prompt: str = ""
    """System message before every sample; "" leaves it to the chat template."""

    def __post_init__(self) -> None:
        require_setting(
            "model.max_length",
            self.max_length,
            self.max_length >= LEAST,
            f"at least {LEAST} tokens",
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class TeacherSection:
    """A second, larger model that visits each silo to judge its answers; trains nothing."""

    name: str = ""
    """Hub name or folder, its tokenizer the base's; "" for none; a site may hold it elsewhere."""
    gguf_file: str = ""
    """File name of a GGUF inside the folder or hub repository; "" for ordinary weights."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Number format of its weights; float32 on a CPU."""
    quantization: Literal["none", "4bit"] = "none"
    """"4bit" loads it with bitsandbytes (CUDA only)."""


ALL_LINEAR = "all-linear"
"""The word of ``adapter.targets`` for every linear layer but the output head."""
DEFAULT_TARGETS = ("q_proj", "v_proj")
MOST_REPEATS = 4
"""Most repeated parts of ``adapter.target_regex``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterSection:
    """The LoRA adapter that every site trains."""

    rank: int = 16
    """Rank r of the factors, at least 1."""
    alpha: float = 32.0
    """Numerator of the scale s = alpha / r, above 0."""
    rslora: bool = False
    """Use s = alpha / √r instead."""
    dropout: float = 0.0
    """Share of adapter inputs dropped in training, in [0, 1)."""
    targets: tuple[str, ...] = DEFAULT_TARGETS
    """Last name parts of the linear layers that get one; ["all-linear"]: all but the head."""
    target_regex: str = field(default="", metadata=OMIT_DEFAULT)
    """Regular expression of their whole names, in place of ``targets``; "" for none."""
    layers: tuple[int, ...] = field(default=(), metadata=OMIT_DEFAULT)
    """Numbers of the transformer layers that get an adapter, from 0; empty: all."""
    exclude: tuple[str, ...] = field(default=(), metadata=OMIT_DEFAULT)
    """Last name parts of linear layers that get none, whatever the others say."""

    def __post_init__(self) -> None:
        require_setting("adapter.rank", self.rank, self.rank >= 1, "at least 1")
        require_setting("adapter.alpha", self.alpha, self.alpha > 0, "above 0")
        require_setting("adapter.dropout", self.dropout, 0 <= self.dropout < 1, "in [0, 1)")
        require_setting(
            "adapter.targets", self.targets, len(self.targets) > 0, "at least one layer name"
        )
        require_setting(
            "adapter.targets",
            self.targets,
            ALL_LINEAR not in self.targets or len(self.targets) == 1,
            f"layer names, or [{ALL_LINEAR!r}] alone",
        )
        require_setting(
            "adapter.targets",
            self.targets,
            not self.target_regex or self.targets == DEFAULT_TARGETS,
            "nothing beside adapter.target_regex, which takes its place",
        )
        require_setting(
            "adapter.layers", self.layers, min(self.layers, default=0) >= 0, "numbers from 0"
        )
        _check_regex(self.target_regex)

    def chooses_names(self) -> bool:
        """Return whether modules are chosen by more than the last parts of their names."""
        chosen = bool(self.target_regex or self.layers or self.exclude)
        return chosen or self.targets == (ALL_LINEAR,)

    def names_of(self, modules: Sequence[str]) -> tuple[str, ...]:
        """Return what names the adapted modules in PEFT's configuration: ends, or full names."""
        return tuple(modules) if self.chooses_names() else self.targets


def _check_regex(regex: str) -> None:
    """Refuse a text that is no regular expression, or one whose matching may take for ever.

    A coordinator sends it and every site matches it: so no group is repeated, and few parts are.

    Raises:
        ConfigError: naming ``adapter.target_regex``.
    """
    try:
        re.compile(regex)
    except re.error as error:
        message = f"adapter.target_regex = {regex!r} is no regular expression: {error}"
        raise ConfigError(message) from error
    bare = re.sub(r"\\.", "", regex)
    repeats = len(re.findall(r"[*+{]", bare))
    require_setting(
        "adapter.target_regex",
        regex,
        repeats <= MOST_REPEATS and not re.search(r"\)[*+{]", bare),
        f"at most {MOST_REPEATS} repeats (*, +, {{}}) and none of a group, so that matching ends",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class ColumnsSection:
    """Column names of a data file."""

    prompt: str = "prompt"
    """Column of the user's text (ignored where ``prompt_template`` or ``messages`` is set)."""
    prompt_template: str = field(default="", metadata=OMIT_DEFAULT)
    """Prompt made of several columns, as "{instruction}\\n\\n{input}"; "" takes ``prompt`` alone.

    A paragraph whose every column is empty vanishes; a brace that stands for itself is doubled."""
    response: str = "response"
    """Column of the answer (ignored where ``messages`` is set)."""
    messages: str = ""
    """Column of chat messages (list of {role, content} or {from, value}), "" if there is none."""
    tools: str = field(default="", metadata=OMIT_DEFAULT)
    """Column of the tools that the model may call (a JSON list), "" if there is none."""
    train_on: Literal["last", "all"] = field(default="last", metadata=OMIT_DEFAULT)
    """Assistant turns that the loss covers: the last, or every one of a chat."""
    domain: str = ""
    """Column of the domain, "" if there is none."""
    labels: tuple[str, ...] = ()
    """Further columns to carry as labels (licence, origin, …)."""

    def __post_init__(self) -> None:
        key, template = "columns.prompt_template", self.prompt_template
        require_setting(
            key,
            template,
            not template or template_columns(template) is not None,
            'a text that names columns in braces, as "{instruction}", other braces doubled',
        )
        require_setting(
            key, template, not (template and self.messages), '"" where columns.messages is set'
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class AnchorsSection:
    """The public clean anchors: split by parent into reference, calibration and hold-out."""

    path: str = ""
    """Data file or data set of clean samples that every site holds."""
    columns: ColumnsSection = field(default_factory=ColumnsSection)
    """Column names of the anchor file."""
    reference: float = 0.25
    """Share of anchors whose mean gradient is the reference, in (0, 1)."""
    calibration: float = 0.5
    """Share of anchors that are corrupted to fit the scorer, in (0, 1)."""
    copies: int = 4
    """Corrupted copies of each calibration anchor, at least 1."""
    corruptions: tuple[str, ...] = ("swap", "cut", "delete", "substitute", "noise")
    """Kinds of corruption, drawn in turn for the copies."""

    def __post_init__(self) -> None:
        require_setting("anchors.reference", self.reference, 0 < self.reference < 1, "in (0, 1)")
        require_setting(
            "anchors.calibration", self.calibration, 0 < self.calibration < 1, "in (0, 1)"
        )
        require_setting(
            "anchors.calibration",
            self.calibration,
            self.reference + self.calibration < 1,
            "below 1 − anchors.reference, so that a hold-out remains",
        )
        require_setting("anchors.copies", self.copies, self.copies >= 1, "at least 1")
        require_setting(
            "anchors.corruptions", self.corruptions, len(self.corruptions) > 0, "at least one kind"
        )


Backend: TypeAlias = Literal["auto", "hooks", "probe", "forward"]
"""Backends that measure; see ``client/measuring/backends.py``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuringSection:
    """Settings of the measuring pass."""

    batch_tokens: int = 2048
    """Tokens in a batch, padding included, at least 8; 0 finds the largest size that is safe."""
    contrast_prompts: int = 2
    """Other public prompts under which each response is measured too, at least 0."""
    backend: Backend = field(default="auto", metadata=OMIT_DEFAULT)
    """How gradient columns are taken (docs/measuring.md); "auto": hooks, or a probe if need be."""
    layers: int = field(default=0, metadata=OMIT_DEFAULT)
    """Last transformer layers whose adapters count in gradient columns, at least 0; 0: all."""

    def __post_init__(self) -> None:
        require_setting(
            "measuring.batch_tokens",
            self.batch_tokens,
            self.batch_tokens == 0 or self.batch_tokens >= LEAST,
            f"at least {LEAST}, or 0 for the largest that memory bears",
        )
        require_setting(
            "measuring.contrast_prompts",
            self.contrast_prompts,
            self.contrast_prompts >= 0,
            "at least 0",
        )
        require_setting("measuring.layers", self.layers, self.layers >= 0, "at least 0")


@dataclass(frozen=True, slots=True, kw_only=True)
class ScorerSection:
    """The scorer that decides, and others that are computed for comparison."""

    name: str = "calibrated"
    """Scorer plug-in (see ``fedwinnow plugins``)."""
    settings: SettingsTable = field(default_factory=dict)
    """Its settings."""
    comparison: tuple[str, ...] = ()
    """Scorers computed on the same table for the report; they decide nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PluginSection:
    """A plug-in by name, with its settings."""

    name: str
    """Name of the plug-in (see ``fedwinnow plugins``)."""
    settings: SettingsTable = field(default_factory=dict)
    """Its settings."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SummarySection:
    """The histogram of scores that leaves a site."""

    bins: int = 256
    """Cells between underflow and overflow, 2 to 4096."""
    smallest_cell: int = 5
    """Samples that a group of cells must hold; fewer are told as 0, at least 1."""

    def __post_init__(self) -> None:
        require_setting("summary.bins", self.bins, 2 <= self.bins <= 4096, "2 to 4096")  # noqa: PLR2004 - the documented range
        require_setting(
            "summary.smallest_cell", self.smallest_cell, self.smallest_cell >= 1, "at least 1"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ClustersSection:
    """Equal quotas for clusters of loss trajectories, above the threshold (S2L)."""

    count: int = 0
    """Most clusters, 0 to 1024; 0 makes no clusters and keeps every sample above the threshold."""
    iterations: int = 10
    """Exchanges of sums and counts, 1 to 100; the last one sets the quotas."""
    budget: float = 0.5
    """Share of the samples that pass the threshold to keep, in (0, 1]."""

    def __post_init__(self) -> None:
        require_setting("clusters.count", self.count, 0 <= self.count <= 1024, "0 to 1024")  # noqa: PLR2004 - the documented range
        rounds = 1 <= self.iterations <= 100  # noqa: PLR2004 - the documented range
        require_setting("clusters.iterations", self.iterations, rounds, "1 to 100")
        require_setting("clusters.budget", self.budget, 0 < self.budget <= 1, "in (0, 1]")
