"""Configuration of a run as frozen dataclasses: the keys of ``scenario.toml`` and ``run.toml``.

Each field is followed by one line with its unit and range, which ``fedwinnow init`` copies into the
file that it writes. Sections up to the score: ``curation/config/scoring.py``. Parsing, strictness
and messages: ``curation/config/strict_toml.py``. Lower-level functions take plain arguments, not
configuration.
"""

from dataclasses import dataclass, field

from fedwinnow.curation.config.coordinator import (
    CoordinatorSection,
    DeadlinesSection,
    GuardsSection,
    KeepSection,
    MemberSection,
    QuorumSection,
)
from fedwinnow.curation.config.scoring import (
    AdapterSection,
    AnchorsSection,
    ClustersSection,
    ColumnsSection,
    MeasuringSection,
    ModelSection,
    PluginSection,
    RunSection,
    ScorerSection,
    SummarySection,
    TeacherSection,
)
from fedwinnow.curation.config.site import (
    SiteSection,
)
from fedwinnow.curation.config.strict_toml import OMIT_DEFAULT, require_setting
from fedwinnow.curation.config.training import (
    EvaluationSection,
    StudySection,
    TrainingSection,
    WarmUpSection,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunTerms:
    """Terms that every site must agree on, sent to them at join; they hold no path and no code."""

    run: RunSection = field(default_factory=RunSection)
    model: ModelSection = field(default_factory=ModelSection)
    teacher: TeacherSection = field(default_factory=TeacherSection)
    adapter: AdapterSection = field(default_factory=AdapterSection)
    anchors: AnchorsSection = field(default_factory=AnchorsSection)
    measuring: MeasuringSection = field(default_factory=MeasuringSection)
    scorer: ScorerSection = field(default_factory=ScorerSection)
    summary: SummarySection = field(default_factory=SummarySection)
    clusters: ClustersSection = field(default_factory=ClustersSection, metadata=OMIT_DEFAULT)
    warm_up: WarmUpSection = field(default_factory=WarmUpSection)
    training: TrainingSection = field(default_factory=TrainingSection)
    guards: GuardsSection = field(default_factory=GuardsSection, metadata=OMIT_DEFAULT)
    evaluation: EvaluationSection = field(default_factory=EvaluationSection)
    study: StudySection = field(default_factory=StudySection)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunConfig(RunTerms):
    """Configuration of a whole run: agreed terms, the server's own sections, simulated sites."""

    threshold: PluginSection = field(default_factory=lambda: PluginSection(name="target_recall"))
    weighting: PluginSection = field(default_factory=lambda: PluginSection(name="samples_kept"))
    merging: PluginSection = field(default_factory=lambda: PluginSection(name="core_svd"))
    keep: KeepSection = field(default_factory=KeepSection, metadata=OMIT_DEFAULT)
    deadlines: DeadlinesSection = field(default_factory=DeadlinesSection)
    quorum: QuorumSection = field(default_factory=QuorumSection)
    coordinator: CoordinatorSection = field(default_factory=CoordinatorSection)
    members: tuple[MemberSection, ...] = ()
    """Sites of a deployed run, as [[members]] with name and key; empty in a simulation."""
    sites: tuple[SiteSection, ...] = ()
    """Sites of a simulation, as [[sites]]; empty in a deployed run."""

    def __post_init__(self) -> None:
        for key, entries in (("sites.name", self.sites), ("members.name", self.members)):
            names = [entry.name for entry in entries]
            require_setting(key, names, len(set(names)) == len(names), "every site named once")

    def terms(self) -> RunTerms:
        """Return the terms that are sent to the sites: local paths are blanked."""
        from dataclasses import fields, replace  # noqa: PLC0415 - two names, used here only

        shared = {f.name: getattr(self, f.name) for f in fields(RunTerms)}
        shared["run"] = replace(self.run, output="")
        shared["model"] = replace(self.model, name="", gguf_file="")
        shared["teacher"] = replace(self.teacher, name="", gguf_file="")
        shared["anchors"] = replace(self.anchors, path="", columns=ColumnsSection())
        return RunTerms(**shared)
