"""Configuration sections of training: warm-up, training, evaluation, study arms."""

from dataclasses import dataclass, field
from typing import Literal

from fedwinnow.curation.config.scoring import PluginSection
from fedwinnow.curation.config.strict_toml import OMIT_DEFAULT, require_setting


@dataclass(frozen=True, slots=True, kw_only=True)
class WarmUpSection:
    """Short training before measuring, so that signals have a trajectory."""

    data: Literal["all", "anchors"] = "all"
    """"all": private samples and calibration rows alike; "anchors": public reference anchors."""
    rounds: int = 1
    """Checkpoints T after the untrained adapter, at least 1."""
    steps: int = 8
    """Optimizer steps of each site and round, at least 1."""
    learning_rate: float = 3e-4
    """Constant learning rate, above 0."""

    def __post_init__(self) -> None:
        require_setting("warm_up.rounds", self.rounds, self.rounds >= 1, "at least 1")
        require_setting("warm_up.steps", self.steps, self.steps >= 1, "at least 1")
        require_setting(
            "warm_up.learning_rate", self.learning_rate, self.learning_rate > 0, "above 0"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingSection:
    """Federated training on the kept samples."""

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
    schedule: Literal["auto", "constant", "linear", "cosine"] = "auto"
    """Learning-rate plan over all rounds together; auto is the ordering's hint, else cosine."""
    warmup_share: float = 0.0
    """Share of all steps with a rising rate, in [0, 1)."""
    weight_decay: float = 0.0
    """AdamW's weight decay, at least 0."""
    max_grad_norm: float = 1.0
    """Largest gradient norm of a step, above 0."""
    sample_grad_norm: float = field(default=0.0, metadata=OMIT_DEFAULT)
    """Largest gradient norm of one sample, clipped before a step sums them up; 0 clips none."""
    precision: Literal["no", "bf16", "fp16"] = "no"
    """Mixed precision of training."""
    gradient_checkpointing: bool = False
    """Trade time for memory in the backward pass."""
    ordering: PluginSection = field(default_factory=lambda: PluginSection(name="shuffled"))
    """Order of the kept samples."""
    objective: PluginSection = field(default_factory=lambda: PluginSection(name="sft"))
    """Loss that a step minimises."""

    def __post_init__(self) -> None:
        require_setting("training.rounds", self.rounds, self.rounds >= 0, "at least 0")
        require_setting("training.steps", self.steps, self.steps >= 1, "at least 1")
        require_setting("training.batch_size", self.batch_size, self.batch_size >= 1, "at least 1")
        require_setting(
            "training.accumulation", self.accumulation, self.accumulation >= 1, "at least 1"
        )
        require_setting(
            "training.learning_rate", self.learning_rate, self.learning_rate > 0, "above 0"
        )
        require_setting(
            "training.warmup_share", self.warmup_share, 0 <= self.warmup_share < 1, "in [0, 1)"
        )
        require_setting(
            "training.weight_decay", self.weight_decay, self.weight_decay >= 0, "at least 0"
        )
        require_setting(
            "training.max_grad_norm", self.max_grad_norm, self.max_grad_norm > 0, "above 0"
        )
        require_setting(
            "training.sample_grad_norm",
            self.sample_grad_norm,
            self.sample_grad_norm >= 0,
            "at least 0",
        )
        require_setting(
            "training.precision",
            self.precision,
            self.precision != "fp16" or self.sample_grad_norm == 0,
            "'no' or 'bf16' beside training.sample_grad_norm, as fp16 scales the loss",
        )


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
        require_setting("evaluation.every", self.every, self.every >= 1, "at least 1")
        require_setting(
            "evaluation.own_holdout", self.own_holdout, 0 <= self.own_holdout < 1, "in [0, 1)"
        )
        require_setting("evaluation.generate", self.generate, self.generate >= 0, "at least 0")


Arm = Literal["curated", "keep_all", "random", "oracle"]


@dataclass(frozen=True, slots=True, kw_only=True)
class StudySection:
    """Arms that train from the same initial adapter with the same number of steps."""

    arms: tuple[Arm, ...] = ("curated",)
    """``curated`` always comes first; ``oracle`` needs planted truth."""
    truth: str = ""
    """Label column with the planted corruption ("clean" for clean); "" where unknown."""

    def __post_init__(self) -> None:
        require_setting(
            "study.arms",
            self.arms,
            len(self.arms) > 0
            and self.arms[0] == "curated"
            and len(set(self.arms)) == len(self.arms),
            "'curated' first, no arm twice",
        )
        require_setting(
            "study.truth",
            self.truth,
            "oracle" not in self.arms or self.truth != "",
            "a label column, as study.arms holds 'oracle'",
        )
