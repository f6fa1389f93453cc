"""Load named studies: a scenario, splits of its texts into silos, and frozen seeds.

A study is a TOML file in ``simulations/scenarios/``: ``scenario``, ``seeds`` and ``[[splits]]``;
each split gives its silos, their data, the share and kinds of corrupted samples, and the settings
that differ from the scenario's. The bed is real text for the demo's model, or generated skills for
a base model that is trained when it is missing.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Literal

from fedwinnow.curation.config.load_files import load_scenario
from fedwinnow.curation.config.run import RunConfig
from fedwinnow.curation.config.scoring import ColumnsSection
from fedwinnow.curation.config.site import SiteSection
from fedwinnow.curation.config.strict_toml import load_toml, require_setting
from fedwinnow.simulations.datasets.demo import demo_config, write_texts
from fedwinnow.simulations.datasets.demo_scenario import local_model
from fedwinnow.simulations.datasets.demo_texts import ANCHORS, KINDS, Silo
from fedwinnow.simulations.datasets.skills import build_skills
from fedwinnow.simulations.datasets.skills_base_model import BaseSection, base_model_folder
from fedwinnow.simulations.studies.study_names import FOLDER, SCENARIO, study_file

BASES = Path("runs") / "base"
"""Folder that keeps base models of generated skills between studies."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """One way to divide texts among silos."""

    name: str
    about: str = ""
    """Purpose in a sentence; printed on the study's page."""
    kinds: tuple[str, ...] = ()
    """Planted kinds, in equal shares; the study's where empty."""
    settings: tuple[str, ...] = ()
    """Lines ``section.key=value`` that differ from the study's."""
    silos: tuple[Silo, ...] = ()
    """The study's where empty."""
    copies: int = 1
    """Number of silos made from each one, at least 1: NAME-1, NAME-2, …"""

    def __post_init__(self) -> None:
        require_setting("splits.copies", self.copies, self.copies >= 1, "at least 1")


@dataclass(frozen=True, slots=True, kw_only=True)
class Study:
    """Content of a study file."""

    about: str = ""
    """Question in a sentence or two; printed at the head of the study's page."""
    bed: Literal["texts", "skills"] = "texts"
    """Real text, or generated skills and the base model that goes with them."""
    scenario: str = SCENARIO
    """File beside the study file with model, plan, scorer and arms."""
    anchors: int = ANCHORS
    """Public anchors of each domain, at least 10."""
    seeds: tuple[int, ...] = (0, 1, 2)
    kinds: tuple[str, ...] = KINDS
    """Planted kinds, in equal shares."""
    settings: tuple[str, ...] = ()
    """Lines ``section.key=value`` that differ from the scenario."""
    silos: tuple[Silo, ...] = ()
    compare: bool = False
    """Whether the splits hold the same data, so that their curated arms are compared pair by pair
    with the first one's."""
    splits: tuple[Split, ...] = field(default_factory=tuple)

    def __post_init__(self) -> None:
        fewest = 10
        require_setting("anchors", self.anchors, self.anchors >= fewest, f"at least {fewest}")
        require_setting(
            "seeds", self.seeds, len(set(self.seeds)) == len(self.seeds) > 0, "distinct seeds"
        )
        names = [split.name for split in self.splits]
        require_setting("splits.name", names, len(set(names)) == len(names) > 0, "distinct names")
        whole = bool(self.silos) or all(split.silos for split in self.splits)
        require_setting("silos", self.silos, whole, "at least one, or some in every split")

    def silos_of(self, split: Split) -> tuple[Silo, ...]:
        """Return the silos of a split, each ``copies`` times."""
        return tuple(_copies(split.silos or self.silos, split.copies))


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Runs of a study: its seeds, and a configuration for each split and seed."""

    title: str
    seeds: tuple[int, ...]
    splits: Mapping[str, Callable[[int], RunConfig]]
    """Name of a split → function that writes the texts of a seed and returns its configuration."""
    about: Mapping[str, str]
    """Split → its purpose; under "" the question of the whole study."""
    compare: bool = False
    """Whether the curated arms of the splits are compared with the first one's."""


def plan(name: str, seeds: int, settings: Sequence[str] = ()) -> Plan:
    """Return the runs of ``fedwinnow study NAME``.

    Args:
        name: "demo", a study of this package, or a scenario file of somebody's own.
        seeds: Number of seeds; a study's own come first, further ones count on from its largest.
        settings: Lines ``section.key=value`` that win over every file.

    Raises:
        ConfigError: there is no such study or file, or a setting is wrong.
    """
    if name == "demo" or Path(name).is_file():
        title = Path(name).stem
        single = partial(_of_scenario, name, settings)
        split = "by domain" if name == "demo" else "as given"
        return Plan(title=title, seeds=tuple(range(seeds)), splits={split: single}, about={})
    study = load_study(name)
    further = range(max(study.seeds) + 1, max(study.seeds) + 1 + seeds)
    return Plan(
        title=name,
        seeds=(*study.seeds, *further)[:seeds],
        splits={
            split.name: partial(_of_split, name, study, split, settings) for split in study.splits
        },
        about={"": study.about, **{split.name: split.about for split in study.splits}},
        compare=study.compare,
    )


def load_study(name: str) -> Study:
    """Load the study of a name.

    Raises:
        ConfigError: there is none, or its file is wrong.
    """
    return load_toml(study_file(name), Study)


def _copies(silos: Sequence[Silo], number: int) -> Iterator[Silo]:
    for silo in silos:
        for copy in range(number):
            yield silo if number == 1 else replace(silo, name=f"{silo.name}-{copy + 1}")


def _of_scenario(name: str, settings: Sequence[str], seed: int) -> RunConfig:
    own = (*settings, f"run.name=study-{Path(name).stem}-{seed}", f"run.seed={seed}")
    if name == "demo":
        return demo_config(seed, overrides=own)
    config = load_scenario(Path(name), own)
    return replace(config, model=local_model(config.model))


def _of_split(
    name: str, study: Study, split: Split, settings: Sequence[str], seed: int
) -> RunConfig:
    """Write the texts of one split and seed, and return its configuration.

    Raises:
        ConfigError: a setting is wrong.
        DataError: the data wheel is missing, or holds too few texts.
        ModelError: the model wheel is missing.
        OutputError: the run folder cannot be written.
    """
    own = (f"run.name=study-{name}-{split.name}-{seed}", f"run.seed={seed}")
    chosen = (*study.settings, *split.settings, *settings, *own)
    config = load_scenario(FOLDER / study.scenario, chosen)
    silos, kinds = study.silos_of(split), split.kinds or study.kinds
    if study.bed == "skills":
        base = base_model_folder(BASES, BaseSection())
        config = replace(config, model=replace(config.model, name=str(base)))
        folder = Path(config.run.output) / f"{config.run.name}-data"
        data = build_skills(folder, seed=seed, silos=silos, anchors=study.anchors, kinds=kinds)
    else:
        config = replace(config, model=local_model(config.model))
        data = write_texts(config, silos=silos, anchors=study.anchors, kinds=kinds)
    columns = ColumnsSection(domain="domain", labels=("corruption",))
    return replace(
        config,
        anchors=replace(config.anchors, path=str(data.anchors)),
        sites=tuple(
            SiteSection(name=silo.name, data=str(data.silos[silo.name]), columns=columns)
            for silo in silos
        ),
    )
