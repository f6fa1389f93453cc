"""Named studies: a scenario, the silos that each of its splits makes of it, and frozen seeds.

A study is a TOML file in ``simulations/scenarios/``: ``scenario``, ``seeds`` and ``[[splits]]``;
each split says which silos there are, what they hold, how much of it is bad and of which kinds, and
which settings differ from the scenario's.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from fedwinnow.curation.config import ColumnsSection, RunConfig, SiteSection
from fedwinnow.curation.errors import ConfigError
from fedwinnow.curation.scenario import load_scenario
from fedwinnow.curation.settings import check, load
from fedwinnow.simulations.demo import demo_config, local_model, write_texts
from fedwinnow.simulations.demo_data import ANCHORS, KINDS, Silo

FOLDER = Path(__file__).parent / "scenarios"


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """One way to divide texts among silos."""

    name: str
    about: str = ""
    """What it is for, in a sentence; stands on the study's page."""
    kinds: tuple[str, ...] = KINDS
    """Planted kinds, in equal shares."""
    settings: tuple[str, ...] = ()
    """Lines ``section.key=value`` that differ from the scenario."""
    silos: tuple[Silo, ...] = ()

    def __post_init__(self) -> None:
        check("splits.silos", self.silos, len(self.silos) > 0, "at least one silo")


@dataclass(frozen=True, slots=True, kw_only=True)
class Study:
    """A study file."""

    scenario: str = "demo.toml"
    """File beside it with model, plan, scorer and arms."""
    anchors: int = ANCHORS
    """Public anchors of each domain, at least 10."""
    seeds: tuple[int, ...] = (0, 1, 2)
    splits: tuple[Split, ...] = field(default_factory=tuple)

    def __post_init__(self) -> None:
        fewest = 10
        check("anchors", self.anchors, self.anchors >= fewest, f"at least {fewest}")
        check("seeds", self.seeds, len(set(self.seeds)) == len(self.seeds) > 0, "distinct seeds")
        names = [split.name for split in self.splits]
        check("splits.name", names, len(set(names)) == len(names) > 0, "distinct names")


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What a study runs."""

    title: str
    seeds: tuple[int, ...]
    splits: Mapping[str, Callable[[int], RunConfig]]
    """Name of a split → (seed → configuration, whose texts are written by then)."""
    about: Mapping[str, str]


def plan(name: str, seeds: int, settings: Sequence[str] = ()) -> Plan:
    """What ``fedwinnow study NAME`` runs.

    Args:
        name: "demo", a study of this package, or a scenario file of somebody's own.
        seeds: How many seeds; a study's own come first, further ones count on from the last.
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
        about={split.name: split.about for split in study.splits},
    )


def load_study(name: str) -> Study:
    """The study of a name.

    Raises:
        ConfigError: there is none, or its file is wrong.
    """
    path = FOLDER / f"{name}.toml"
    if not path.exists() or name == "demo":
        message = f"study: expected one of {', '.join(names())} or a scenario file, got {name!r}"
        raise ConfigError(message)
    return load(path, Study)


def names() -> list[str]:
    """Names of the studies that come with the package."""
    return sorted(path.stem for path in FOLDER.glob("*.toml"))


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
    config = load_scenario(FOLDER / study.scenario, (*split.settings, *settings, *own))
    config = replace(config, model=local_model(config.model))
    columns = ColumnsSection(domain="domain", labels=("corruption",))
    data = write_texts(config, silos=split.silos, anchors=study.anchors, kinds=split.kinds)
    return replace(
        config,
        anchors=replace(config.anchors, path=str(data.anchors)),
        sites=tuple(
            SiteSection(name=silo.name, data=str(data.silos[silo.name]), columns=columns)
            for silo in split.silos
        ),
    )
