"""Configure the federation under attack: eight sites of generated skills, the last may lie.

The honest run has the same seven sites, files and anchors, without the eighth.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from fedwinnow.client.data.samples import open_samples
from fedwinnow.curation.config.load_files import load_scenario
from fedwinnow.curation.config.run import RunConfig
from fedwinnow.curation.config.scoring import ColumnsSection
from fedwinnow.curation.config.site import SiteSection
from fedwinnow.simulations.attacks.catalogue import ATTACKS, TRIGGER
from fedwinnow.simulations.attacks.liar import Liar
from fedwinnow.simulations.datasets.demo_texts import KINDS, Silo, write_samples
from fedwinnow.simulations.datasets.skills import build_skills
from fedwinnow.simulations.datasets.skills_base_model import BaseSection, base_model_folder
from fedwinnow.simulations.runtimes.in_process import SiteWrapper
from fedwinnow.simulations.studies.definitions import BASES
from fedwinnow.simulations.studies.study_names import FOLDER

HONEST = tuple(f"site-{number}" for number in range(1, 8))
LIAR = "site-8"
"""Names of the honest sites, and of the liar."""
SAMPLES, BAD, ANCHORS = 60, 0.3, 60
"""Samples of a site, share of them that is corrupted, public anchors of a domain."""
RULES = ("target_recall", "keep_fraction")
"""Threshold rules: the default uses public scores alone; the other uses the sites' histograms."""
PLAN = (
    "run.trajectory=none",
    "run.threads=1",
    "scorer.comparison=[]",
    'study.arms=["curated"]',
    "training.rounds=2",
    "training.steps=8",
    "training.learning_rate=1e-2",
    "evaluation.every=2",
)
"""Settings that differ from ``scenarios/skills.toml``, so that a run takes seconds."""
GUARDS = (
    "guards.norm=2.0",
    "guards.weight=0.25",
    "guards.anchor_margin=0.05",
    'guards.rule="krum"',
    "guards.liars=1",
    "guards.kept_share=1.25",
    'guards.summaries="median"',
)
"""The recommended guards (``docs/merging.md``)."""
OPEN = ('guards.summaries="sum"',)
"""A federation that is guarded in nothing, not even in what is on by default."""
BASE = BaseSection(steps=400, house=0.02)
"""Base model that has hardly met the sites' manner, so that honest training has much to gain."""
SHARE = 0.7
"""Share that ``keep_fraction`` keeps: as much as is clean."""


def describe_case(config: RunConfig) -> str:
    """Describe the attacked federation in a sentence for the page."""
    training = config.training
    return (
        f"One liar among {len(HONEST) + 1} sites of {SAMPLES} generated samples each, {BAD:.0%} of "
        f"them bad; run.trajectory '{config.run.trajectory}', {training.rounds} rounds of "
        f"{training.steps} steps."
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One run: seed, attack, guards and threshold rule."""

    seed: int
    attack: str = ""
    """Name in ``ATTACKS``; "" for the run without the liar."""
    guarded: bool = False
    rule: str = "target_recall"

    @property
    def name(self) -> str:
        """Return the name of the run folder."""
        guards = "guarded" if self.guarded else "open"
        return f"attacks-{self.rule}-{self.attack or 'honest'}-{guards}-{self.seed}"


def configure_case(case: Case, settings: Sequence[str] = ()) -> RunConfig:
    """Write the texts of a case's seed, and return its configuration.

    Args:
        case: What to run.
        settings: Lines ``section.key=value`` that win over every other.

    Raises:
        ConfigError: a setting is wrong.
        OutputError: a file cannot be written.
    """
    rule = [f'threshold={{name="{case.rule}"}}']
    rule += [f"threshold.settings.share={SHARE}"] if case.rule == "keep_fraction" else []
    lines = (*PLAN, *rule, *(GUARDS if case.guarded else OPEN), *settings)
    own = (f"run.name={case.name}", f"run.seed={case.seed}")
    config = load_scenario(FOLDER / "skills.toml", (*lines, *own))
    folder = Path(config.run.output) / f"attacks-data-{case.seed}"
    names = (*HONEST, LIAR)
    silos = [Silo(name=n, domain="sums+lists+records", samples=SAMPLES, bad=BAD) for n in names]
    data = build_skills(folder, seed=case.seed, silos=silos, anchors=ANCHORS, kinds=KINDS)
    files, columns = dict(data.silos), ColumnsSection(domain="domain", labels=("corruption",))
    plants = ATTACKS[case.attack].plants if case.attack else None
    if plants is not None:
        mine = plants(list(open_samples(str(files[LIAR]), columns)))
        files[LIAR] = folder / f"{LIAR}-{case.attack}.jsonl"
        write_samples(files[LIAR], [replace(one, labels={"corruption": TRIGGER}) for one in mine])
    base = base_model_folder(BASES, BASE)
    return replace(
        config,
        model=replace(config.model, name=str(base)),
        anchors=replace(config.anchors, path=str(data.anchors)),
        sites=tuple(
            SiteSection(name=name, data=str(files[name]), columns=columns)
            for name in (names if case.attack else HONEST)
        ),
    )


def wrap_last_site(case: Case) -> SiteWrapper | None:
    """Return the wrapper that makes the last site lie; None without an attack."""
    if not case.attack:
        return None
    attack = ATTACKS[case.attack]
    return lambda name, site: (
        Liar(name=name, site=site, attack=attack, seed=case.seed) if name == LIAR else site
    )


def attack_cases(names: Sequence[str], seed: int) -> list[Case]:
    """Return the runs of one seed: without the liar, then each attack; open, then guarded.

    Attacks on counts and histograms are tried under every threshold rule, others under the first.
    """
    found = []
    for rule in RULES:
        here = [name for name in names if rule == RULES[0] or ATTACKS[name].histogram]
        if not here:
            continue
        found += [
            Case(seed=seed, attack=attack, guarded=guarded, rule=rule)
            for attack in ("", *here)
            for guarded in (False, True)
        ]
    return found
