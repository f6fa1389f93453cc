"""The configuration of a run and of a site, as frozen dataclasses; the words of ``scenario.toml``.

Each field is followed by one line with its unit and range, which ``fedwinnow init`` copies into the
file that it writes. Parsing, strictness and messages: ``curation/settings.py``. Functions below the
rim take plain arguments: configuration stops at the door.
"""

from dataclasses import dataclass, field
from typing import Any, Literal

from fedwinnow.curation.settings import check

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
    trajectory: Literal["global", "none"] = "global"
    """"global": warm up, measure gradients at shared checkpoints; "none": forward signals only."""
    minimum_sites: int = 1
    """Sites that must answer a phase, at least 1."""

    def __post_init__(self) -> None:
        check(
            "run.name",
            self.name,
            self.name != ""
            and all(c.isalnum() or c in "-_." for c in self.name)
            and self.name not in {".", ".."},
            "letters, digits, '-', '_', '.'",
        )
        check("run.seed", self.seed, self.seed >= 0, "at least 0")
        check("run.threads", self.threads, self.threads >= 1, "at least 1")
        check("run.minimum_sites", self.minimum_sites, self.minimum_sites >= 1, "at least 1")


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
        check(
            "model.max_length",
            self.max_length,
            self.max_length >= LEAST,
            f"at least {LEAST} tokens",
        )


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
    targets: tuple[str, ...] = ("q_proj", "v_proj")
    """Last name parts of the linear layers that get an adapter."""

    def __post_init__(self) -> None:
        check("adapter.rank", self.rank, self.rank >= 1, "at least 1")
        check("adapter.alpha", self.alpha, self.alpha > 0, "above 0")
        check("adapter.dropout", self.dropout, 0 <= self.dropout < 1, "in [0, 1)")
        check("adapter.targets", self.targets, len(self.targets) > 0, "at least one layer name")


@dataclass(frozen=True, slots=True, kw_only=True)
class ColumnsSection:
    """Which columns of a data file hold what."""

    prompt: str = "prompt"
    """Column of the user's text (ignored where ``messages`` is set)."""
    response: str = "response"
    """Column of the answer."""
    messages: str = ""
    """Column of chat messages (list of {role, content}), "" if there is none."""
    domain: str = ""
    """Column of the domain, "" if there is none."""
    labels: tuple[str, ...] = ()
    """Further columns to carry as labels (licence, origin, …)."""


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
        check("anchors.reference", self.reference, 0 < self.reference < 1, "in (0, 1)")
        check("anchors.calibration", self.calibration, 0 < self.calibration < 1, "in (0, 1)")
        check(
            "anchors.calibration",
            self.calibration,
            self.reference + self.calibration < 1,
            "below 1 − anchors.reference, so that a hold-out remains",
        )
        check("anchors.copies", self.copies, self.copies >= 1, "at least 1")
        check(
            "anchors.corruptions", self.corruptions, len(self.corruptions) > 0, "at least one kind"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuringSection:
    """The measuring pass."""

    batch_tokens: int = 2048
    """Tokens in a batch, padding included, at least 8."""
    contrast_prompts: int = 2
    """Other public prompts that each response is set against, at least 0."""

    def __post_init__(self) -> None:
        check(
            "measuring.batch_tokens",
            self.batch_tokens,
            self.batch_tokens >= LEAST,
            f"at least {LEAST}",
        )
        check(
            "measuring.contrast_prompts",
            self.contrast_prompts,
            self.contrast_prompts >= 0,
            "at least 0",
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ScorerSection:
    """The scorer that decides, and those that are computed beside it."""

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
    """Samples that a cell must hold; smaller ones are merged, at least 1."""

    def __post_init__(self) -> None:
        check("summary.bins", self.bins, 2 <= self.bins <= 4096, "2 to 4096")  # noqa: PLR2004 - the documented range
        check("summary.smallest_cell", self.smallest_cell, self.smallest_cell >= 1, "at least 1")


@dataclass(frozen=True, slots=True, kw_only=True)
class WarmUpSection:
    """Short training on everything, so that signals have a trajectory."""

    rounds: int = 1
    """Checkpoints T after the untrained adapter, at least 1."""
    steps: int = 8
    """Optimizer steps of each site and round, at least 1."""
    learning_rate: float = 3e-4
    """Constant learning rate, above 0."""

    def __post_init__(self) -> None:
        check("warm_up.rounds", self.rounds, self.rounds >= 1, "at least 1")
        check("warm_up.steps", self.steps, self.steps >= 1, "at least 1")
        check("warm_up.learning_rate", self.learning_rate, self.learning_rate > 0, "above 0")


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingSection:
    """Federated training on what was kept."""

    rounds: int = 3
    """Federated rounds R; 0 scores and selects without training."""
    steps: int = 20
    """Optimizer steps of each site and round, the same in every arm, at least 1."""
    batch_size: int = 4
    """Samples of one forward pass, at least 1."""
    accumulation: int = 1
    """Forward passes of one optimizer step, at least 1."""
    learning_rate: float = 3e-4
    """Peak learning rate of AdamW, above 0."""
    schedule: Literal["constant", "linear", "cosine"] = "cosine"
    """Learning-rate plan over all rounds together."""
    warmup_share: float = 0.0
    """Share of all steps with a rising rate, in [0, 1)."""
    weight_decay: float = 0.0
    """AdamW's weight decay, at least 0."""
    max_grad_norm: float = 1.0
    """Gradient norm bound of a step, above 0."""
    precision: Literal["no", "bf16", "fp16"] = "no"
    """Mixed precision of training."""
    gradient_checkpointing: bool = False
    """Trade time for memory in the backward pass."""
    ordering: PluginSection = field(default_factory=lambda: PluginSection(name="shuffled"))
    """Order of the kept samples."""
    objective: PluginSection = field(default_factory=lambda: PluginSection(name="sft"))
    """What a step minimises."""

    def __post_init__(self) -> None:
        check("training.rounds", self.rounds, self.rounds >= 0, "at least 0")
        check("training.steps", self.steps, self.steps >= 1, "at least 1")
        check("training.batch_size", self.batch_size, self.batch_size >= 1, "at least 1")
        check("training.accumulation", self.accumulation, self.accumulation >= 1, "at least 1")
        check("training.learning_rate", self.learning_rate, self.learning_rate > 0, "above 0")
        check("training.warmup_share", self.warmup_share, 0 <= self.warmup_share < 1, "in [0, 1)")
        check("training.weight_decay", self.weight_decay, self.weight_decay >= 0, "at least 0")
        check("training.max_grad_norm", self.max_grad_norm, self.max_grad_norm > 0, "above 0")


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationSection:
    """Evaluation after every round."""

    own_holdout: float = 0.0
    """Share of each silo's samples kept apart for its own (unverified) evaluation, in [0, 1)."""
    generate: int = 0
    """Public hold-out prompts answered before and after training, for the report, at least 0."""
    every: int = 1
    """Evaluate after each n-th round, and always after the last, at least 1."""

    def __post_init__(self) -> None:
        check("evaluation.every", self.every, self.every >= 1, "at least 1")
        check("evaluation.own_holdout", self.own_holdout, 0 <= self.own_holdout < 1, "in [0, 1)")
        check("evaluation.generate", self.generate, self.generate >= 0, "at least 0")


Arm = Literal["curated", "keep_all", "random", "oracle"]


@dataclass(frozen=True, slots=True, kw_only=True)
class StudySection:
    """Arms that train from the same initial adapter with the same number of steps."""

    arms: tuple[Arm, ...] = ("curated",)
    """``curated`` always comes first; ``oracle`` needs planted truth."""
    truth: str = ""
    """Label column with the planted corruption ("clean" for clean); "" where unknown."""

    def __post_init__(self) -> None:
        check(
            "study.arms",
            self.arms,
            len(self.arms) > 0
            and self.arms[0] == "curated"
            and len(set(self.arms)) == len(self.arms),
            "'curated' first, no arm twice",
        )
        check(
            "study.truth",
            self.truth,
            "oracle" not in self.arms or self.truth != "",
            "a label column, as study.arms holds 'oracle'",
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class GateSection:
    """What a silo lets into its own pool; stays at the site."""

    near_duplicates: float = 0.9
    """Jaccard similarity of 5-word shingles from which two samples count as duplicates, (0, 1]."""
    licences: tuple[str, ...] = ()
    """Allowed values of the label ``licence``; empty allows all."""

    def __post_init__(self) -> None:
        check(
            "gate.near_duplicates", self.near_duplicates, 0 < self.near_duplicates <= 1, "in (0, 1]"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteSection:
    """One silo: the words of ``site.toml`` and of ``[[sites]]`` in a scenario."""

    name: str
    """Name of the site, unique in the run: letters, digits, '-', '_' and '.'."""
    data: str
    """Data file (.jsonl, .parquet, .csv), data folder or hub name."""
    domain: str = ""
    """Domain of every sample that has none of its own."""
    columns: ColumnsSection = field(default_factory=ColumnsSection)
    """Column names of the data."""
    gate: GateSection = field(default_factory=GateSection)
    """What is let in."""
    round_counts_to: int = 1
    """Counts that leave the site are rounded to multiples of this, at least 1."""
    smallest_cell: int = 0
    """The site's own smallest histogram cell; the larger of it and the run's holds, at least 0."""

    def __post_init__(self) -> None:
        check(
            "sites.name",
            self.name,
            self.name != ""
            and all(c.isalnum() or c in "-_." for c in self.name)
            and self.name not in {".", ".."},
            "letters, digits, '-', '_', '.'",
        )
        check(
            "sites.round_counts_to", self.round_counts_to, self.round_counts_to >= 1, "at least 1"
        )
        check("sites.smallest_cell", self.smallest_cell, self.smallest_cell >= 0, "at least 0")


@dataclass(frozen=True, slots=True, kw_only=True)
class RunTerms:
    """What every site must agree on; travels to the sites at join. Holds no path and no code."""

    run: RunSection = field(default_factory=RunSection)
    model: ModelSection = field(default_factory=ModelSection)
    adapter: AdapterSection = field(default_factory=AdapterSection)
    anchors: AnchorsSection = field(default_factory=AnchorsSection)
    measuring: MeasuringSection = field(default_factory=MeasuringSection)
    scorer: ScorerSection = field(default_factory=ScorerSection)
    summary: SummarySection = field(default_factory=SummarySection)
    warm_up: WarmUpSection = field(default_factory=WarmUpSection)
    training: TrainingSection = field(default_factory=TrainingSection)
    evaluation: EvaluationSection = field(default_factory=EvaluationSection)
    study: StudySection = field(default_factory=StudySection)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunConfig:
    """A whole run: the agreed terms, what the server alone decides, and the simulated sites."""

    run: RunSection = field(default_factory=RunSection)
    model: ModelSection = field(default_factory=ModelSection)
    adapter: AdapterSection = field(default_factory=AdapterSection)
    anchors: AnchorsSection = field(default_factory=AnchorsSection)
    measuring: MeasuringSection = field(default_factory=MeasuringSection)
    scorer: ScorerSection = field(default_factory=ScorerSection)
    summary: SummarySection = field(default_factory=SummarySection)
    threshold: PluginSection = field(default_factory=lambda: PluginSection(name="target_recall"))
    warm_up: WarmUpSection = field(default_factory=WarmUpSection)
    training: TrainingSection = field(default_factory=TrainingSection)
    weighting: PluginSection = field(default_factory=lambda: PluginSection(name="samples_kept"))
    merging: PluginSection = field(default_factory=lambda: PluginSection(name="core_svd"))
    evaluation: EvaluationSection = field(default_factory=EvaluationSection)
    study: StudySection = field(default_factory=StudySection)
    sites: tuple[SiteSection, ...] = ()

    def __post_init__(self) -> None:
        names = [site.name for site in self.sites]
        check("sites.name", names, len(set(names)) == len(names), "every site named once")

    def terms(self) -> RunTerms:
        """The part that travels: local paths are blanked."""
        from dataclasses import fields, replace  # noqa: PLC0415 - two names, used here only

        shared = {f.name: getattr(self, f.name) for f in fields(RunTerms)}
        shared["run"] = replace(self.run, output="")
        shared["model"] = replace(self.model, name="", gguf_file="")
        shared["anchors"] = replace(self.anchors, path="", columns=ColumnsSection())
        return RunTerms(**shared)


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteConfig:
    """Everything a site needs of its own: ``site.toml``; nothing of it comes from a server."""

    site: SiteSection
    model: ModelSection = field(default_factory=ModelSection)
    anchors: AnchorsSection = field(default_factory=AnchorsSection)
    work: str = "site-data"
    """Folder in which the site keeps its own tables."""
    simulation: bool = False
    """Whether planted truth may be used (oracle arm) and any number of runs is answered."""


def site_configs(config: RunConfig, work: str) -> tuple[SiteConfig, ...]:
    """The simulated sites of a scenario, each as its own configuration."""
    return tuple(
        SiteConfig(
            site=site,
            model=config.model,
            anchors=config.anchors,
            work=f"{work}/{site.name}",
            simulation=True,
        )
        for site in config.sites
    )
