"""Sections of ``site.toml``: the silo's own settings, which outrank any request.

Each field is followed by one line with its unit and range, as in ``curation/config/run.py``.
"""

import math
from dataclasses import dataclass, field, replace
from typing import Literal

from fedwinnow.curation.config.scoring import (
    LEAST,
    AnchorsSection,
    ColumnsSection,
    ModelSection,
    TeacherSection,
)
from fedwinnow.curation.config.strict_toml import renamed, require_setting

CAREFUL_STEP = 10
"""Step of rounding that a deployment takes where ``site.toml`` names none."""
CAREFUL_CELL = 8
"""Smallest histogram cell that a deployment takes where ``site.toml`` names none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GateSection:
    """Gates that a sample must pass to enter the silo's data; they stay at the site."""

    near_duplicates: float = 0.9
    """Jaccard similarity of 5-word shingles from which two samples count as duplicates, (0, 1]."""
    licences: tuple[str, ...] = ()
    """Allowed values of the label ``licence``; empty allows all."""
    languages: tuple[str, ...] = ()
    """Allowed values of the label ``language``; empty allows all."""
    shortest: int = 0
    """Fewest characters of a response, at least 0."""
    longest: int = 0
    """Most characters of prompt, history and response together; 0 allows any."""
    personal_data: tuple[str, ...] = ()
    """Samples with such text are left out: email, phone, iban, card, ip, or a pattern "re:…"."""

    control_tokens: Literal["text", "drop"] = "text"
    """Samples whose text spells a control token of the tokenizer: encoded as text, or left out."""

    def __post_init__(self) -> None:
        require_setting(
            "gate.near_duplicates", self.near_duplicates, 0 < self.near_duplicates <= 1, "in (0, 1]"
        )
        require_setting("gate.shortest", self.shortest, self.shortest >= 0, "at least 0")
        require_setting("gate.longest", self.longest, self.longest >= 0, "at least 0")


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteSection:
    """One silo: the keys of ``[site]`` in ``site.toml`` and of ``[[sites]]`` in a scenario."""

    name: str
    """Name of the site, unique in the run: letters, digits, '-', '_' and '.'."""
    data: str
    """Data file (.jsonl, .parquet, .csv), data folder or hub name."""
    domain: str = ""
    """Domain of every sample that has none of its own."""
    columns: ColumnsSection = field(default_factory=ColumnsSection)
    """Column names of the data."""
    gate: GateSection = field(default_factory=GateSection)
    """Gates of the data."""
    rank: int = 0
    """Rank of the adapter that this site trains, at most the run's; 0 takes the run's."""
    targets: tuple[str, ...] = ()
    """Layers of the run's ``adapter.targets`` that this site trains; empty trains all of them."""
    round_counts_to: int = 0
    """Step of counts that leave; 0 takes 10 in a deployment, 1 (exact) in a simulation."""
    smallest_cell: int = 0
    """Smallest cell that is told; 0 takes 8, 1 in a simulation; the larger of it and the run's."""
    max_bins: int = 256
    """Most groups of histogram cells that are told, at least 1; fewer by the number of samples."""

    def __post_init__(self) -> None:
        require_setting(
            "sites.name",
            self.name,
            self.name != ""
            and all(c.isalnum() or c in "-_." for c in self.name)
            and self.name not in {".", ".."},
            "letters, digits, '-', '_', '.'",
        )
        require_setting("sites.rank", self.rank, self.rank >= 0, "at least 0")
        require_setting(
            "sites.round_counts_to", self.round_counts_to, self.round_counts_to >= 0, "at least 0"
        )
        require_setting("sites.max_bins", self.max_bins, self.max_bins >= 1, "at least 1")
        require_setting(
            "sites.smallest_cell", self.smallest_cell, self.smallest_cell >= 0, "at least 0"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicySection:
    """Limits on a coordinator's requests; enforced by the agent before anything leaves the site."""

    coordinator: str = ""
    """The coordinator's public key, as `fedwinnow keys` prints it; no other is obeyed."""
    anchors_hash: str = ""
    """Hash of the anchor set that was agreed; "" takes the one in ``anchors.path`` as it is."""
    allow_individual_updates: bool = field(
        default=False, metadata=renamed("allow_unsealed_adapters")
    )
    """Whether adapters and histograms may be seen by the coordinator one by one; set knowingly."""
    share_adapter_with_members: bool = False
    """Whether this site's adapters may go on to all members, and to whoever carries requests."""
    privacy_budget: float = math.inf
    """Epsilon that releases on one data set may spend, above 0; inf asks for no noise."""
    phases: tuple[str, ...] = ()
    """Phases that are answered besides join and close; empty answers all."""
    plugins: tuple[str, ...] = ()
    """Plug-ins that may run here, as "kind:name"; empty allows every installed one."""
    plugin_settings: bool = True
    """Whether a run may change settings of plug-ins from their defaults."""
    summaries: int = 1
    """Most histograms, and selections, of one data set against one anchor set, over all runs."""
    max_clusters: int = 0
    """Most clusters whose counts and mean losses leave, at least 0; 0 refuses runs with any."""
    max_cluster_rounds: int = 20
    """Most exchanges of such counts and means in one run, at least 1."""
    min_change: int = 50
    """Samples that must differ before changed data count as another data set, at least 1."""
    smallest_group: int = 32
    """Fewest distinct samples of an optimizer step, and behind a mean loss, at least 1."""
    max_sample_grad_norm: float = 1.0
    """Bound on training.sample_grad_norm, above 0, which must clip; inf allows none to clip."""
    min_grad_norm: float = 0.01
    """Smallest training.max_grad_norm and sample_grad_norm of a run, at least 0."""
    max_learning_rate: float = 0.01
    """Largest learning rate of training and warm-up, above 0."""
    max_weight_decay: float = 0.1
    """Largest training.weight_decay, at least 0."""
    max_objective_strength: float = 10.0
    """Largest number, either sign, in the settings of the objective, at least 0."""
    max_rounds: int = 20
    """Training rounds on one data set over all runs, warm-up and every arm counted, at least 1."""
    max_steps: int = 10_000
    """Optimizer steps of one run, warm-up and every arm counted, at least 1."""
    max_rank: int = 64
    """Largest LoRA rank, at least 1."""
    max_adapter_mb: int = 1024
    """Largest adapter, received or sent, megabytes, at least 1."""
    max_reviewers: int = 16
    """Adapters of members that one request may bring, to review or to be judged, at least 1."""
    max_draws: int = 1_000_000
    """Samples that the optimizer steps of one run draw, at least 1."""
    max_pass_tokens: int = 262_144
    """Tokens of one forward pass, padding included, at least 8."""
    max_repeats: int = 64
    """Copies of an anchor, contrast prompts, answers to write, scorers to compare, at least 1."""
    max_open_runs: int = 64
    """Runs that are joined and not closed; a further one is refused, at least 1."""

    def __post_init__(self) -> None:
        require_setting(
            "policy.privacy_budget", self.privacy_budget, self.privacy_budget > 0, "above 0"
        )
        for name in (
            "summaries",
            "max_cluster_rounds",
            "min_change",
            "smallest_group",
            "max_rounds",
            "max_steps",
            "max_rank",
            "max_adapter_mb",
            "max_reviewers",
            "max_draws",
            "max_repeats",
            "max_open_runs",
        ):
            require_setting(
                f"policy.{name}", getattr(self, name), getattr(self, name) >= 1, "at least 1"
            )
        require_setting(
            "policy.max_pass_tokens", self.max_pass_tokens, self.max_pass_tokens >= LEAST,
            f"at least {LEAST}",
        )  # fmt: skip
        for name in ("max_learning_rate", "max_sample_grad_norm"):
            came = getattr(self, name)
            require_setting(f"policy.{name}", came, came > 0, "above 0")
        for name in ("max_clusters", "min_grad_norm", "max_weight_decay", "max_objective_strength"):
            came = getattr(self, name)
            require_setting(f"policy.{name}", came, came >= 0, "at least 0")


@dataclass(frozen=True, slots=True, kw_only=True)
class ComputeSection:
    """Processes that measure the samples of this site: this one, or workers of its own."""

    workers: int = 1
    """Processes that measure side by side, with the base model in each, at least 1."""
    ray: str = ""
    """Address of a Ray cluster of this site's own ("auto": of this machine); "" starts one here."""
    gpus: float = -1.0
    """GPUs of a worker (0.5: two share one), at least 0; -1 gives one where there are any."""

    def __post_init__(self) -> None:
        require_setting("compute.workers", self.workers, self.workers >= 1, "at least 1")
        require_setting(
            "compute.gpus", self.gpus, self.gpus >= 0 or self.gpus == -1, "at least 0, or -1"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentSection:
    """The process that holds data, model and policy, and listens on a Unix socket."""

    socket: str = "agent/agent.sock"
    """Path of the Unix socket, at most 100 bytes; its folder is made with mode 0750."""
    token: str = "agent/token"  # noqa: S105 - a path
    """File with the token that the node's user must show; made at first start, mode 0640."""
    key: str = "agent.key"
    """The site's private key; made at first start, mode 0600."""
    group: str = ""
    """Group of socket and token, which the node's user belongs to; "" is the agent's own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteConfig:
    """Whole configuration of a site: ``site.toml``; nothing of it comes from a server."""

    site: SiteSection
    model: ModelSection = field(default_factory=ModelSection)
    teacher: TeacherSection = field(default_factory=TeacherSection)
    anchors: AnchorsSection = field(default_factory=AnchorsSection)
    policy: PolicySection = field(default_factory=PolicySection)
    agent: AgentSection = field(default_factory=AgentSection)
    compute: ComputeSection = field(default_factory=ComputeSection)
    work: str = "site-data"
    """Folder in which the site keeps its own tables."""
    simulation: bool = False
    """Whether planted truth may be used (oracle arm) and the policy is not asked."""

    def __post_init__(self) -> None:
        """Put the numbers of a deployment or a simulation where the section leaves them open."""
        step, cell = (1, 1) if self.simulation else (CAREFUL_STEP, CAREFUL_CELL)
        site = replace(
            self.site,
            round_counts_to=self.site.round_counts_to or step,
            smallest_cell=self.site.smallest_cell or cell,
        )
        object.__setattr__(self, "site", site)
