"""Read a scenario from Flower's run config: a file name, and flat keys that override the file.

Flower knows only texts, numbers and truth values, and only keys that ``pyproject.toml`` lists.
``scenario`` names the TOML file, ``overrides`` holds lines ``section.key=value``, ``resume``
continues the run in the run folder, ``supervisor`` is the lock of the command that watches it, and
every other key (``training.rounds``) is one override; an empty text means that the scenario's own
value holds.
"""

import json
from collections.abc import Mapping
from pathlib import Path

from fedwinnow.curation.config.load_files import load_run, load_scenario
from fedwinnow.curation.config.run import RunConfig
from fedwinnow.curation.config.strict_toml import load_toml
from fedwinnow.curation.errors import ConfigError

OWN_KEYS = frozenset({"scenario", "overrides", "resume", "supervisor"})
"""Keys that are not overrides of the scenario."""


def read_overrides(run_config: Mapping[str, object]) -> tuple[str, ...]:
    """Return a run config's ``section.key=value`` lines; ``overrides`` wins over single keys."""
    single = [
        f"{key}={json.dumps(value, ensure_ascii=False)}"
        for key, value in sorted(run_config.items())
        if key not in OWN_KEYS and value != ""
    ]
    lines = str(run_config.get("overrides", "")).splitlines()
    return (*single, *(line.strip() for line in lines if line.strip()))


def scenario_file(run_config: Mapping[str, object]) -> Path:
    """Return the path of the scenario that a run config names.

    Raises:
        ConfigError: it names none.
    """
    name = str(run_config.get("scenario", ""))
    if not name:
        message = (
            "scenario: expected the path of a scenario file, got ''; give one: "
            """flwr run . --run-config 'scenario="/path/of/scenario.toml"' """
            "(fedwinnow init writes one for your data)"
        )
        raise ConfigError(message)
    return Path(name).expanduser()


def run_config_scenario(run_config: Mapping[str, object]) -> RunConfig:
    """Load the whole configuration that a run config describes.

    Raises:
        ConfigError: no scenario is named, it cannot be read, or a key or value is wrong.
    """
    file, lines = scenario_file(run_config), read_overrides(run_config)
    deployed = bool(load_toml(file, RunConfig, lines).coordinator.key)
    return load_run(file, lines) if deployed else load_scenario(file, lines)
