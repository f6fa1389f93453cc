"""Read the recipes that ``fedwinnow recipes compare`` is given; nothing heavy is loaded."""

import shlex
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from fedwinnow.curation.config.load_files import load_scenario
from fedwinnow.curation.config.run import RunConfig
from fedwinnow.curation.errors import ConfigError
from fedwinnow.simulations.datasets.demo_scenario import local_model

GIVEN = "as given"


def read_recipes(
    scenarios: Sequence[Path], groups: Sequence[str], settings: Sequence[str] = ()
) -> dict[str, RunConfig]:
    """Read recipes by name: one per scenario, or one per group of settings on a single scenario.

    Args:
        scenarios: TOML files.
        groups: Texts like ``"scorer.name=ifd training.schedule=constant"``; "" is the scenario.
        settings: Lines ``section.key=value`` for every recipe; its own group wins over them.

    Raises:
        ConfigError: a file or setting is wrong, a name comes twice, groups have two scenarios.
    """
    if groups and len(scenarios) != 1:
        message = f"--recipe: expected one scenario that all groups change, got {len(scenarios)}"
        raise ConfigError(message)
    stems = [path.stem for path in scenarios]
    named_by = (
        [path.stem if stems.count(path.stem) == 1 else str(path) for path in scenarios]
        if not groups
        else [group or GIVEN for group in groups]
    )
    if len(set(named_by)) != len(named_by):
        message = f"recipes: expected distinct ones, got {named_by}; leave the copies out"
        raise ConfigError(message)
    found = {}
    for name, path, group in zip(
        named_by,
        scenarios if not groups else list(scenarios) * len(groups),
        groups or [""] * len(scenarios),
        strict=True,
    ):
        config = load_scenario(path, (*settings, *shlex.split(group)))
        found[name] = replace(config, model=local_model(config.model))
    return found
