"""List the named studies, and check a study's settings before anything heavy loads."""

import tomllib
from collections.abc import Sequence
from pathlib import Path

from fedwinnow.curation.config.load_files import load_scenario
from fedwinnow.curation.errors import ConfigError
from fedwinnow.simulations import scenarios

FOLDER = Path(scenarios.__file__).parent
BEDS = ("demo", "skills")
"""Scenarios that studies are based on; not studies themselves."""
SCENARIO = "demo.toml"
"""Scenario of a study that names none."""


def names() -> list[str]:
    """Return the names of the studies that come with the package."""
    return sorted(path.stem for path in FOLDER.glob("*.toml") if path.stem not in BEDS)


def study_file(name: str) -> Path:
    """Return the file of a study.

    Raises:
        ConfigError: there is no study of this name.
    """
    if name not in names():
        message = f"study: expected one of {', '.join(names())} or a scenario file, got {name!r}"
        raise ConfigError(message)
    return FOLDER / f"{name}.toml"


def check_study_settings(name: str, settings: Sequence[str]) -> None:
    """Check the name of a study, or "demo", and settings that win over its scenario's.

    Raises:
        ConfigError: there is no such study, or a setting is wrong.
    """
    study = {} if name == "demo" else tomllib.loads(study_file(name).read_text(encoding="utf-8"))
    load_scenario(FOLDER / study.get("scenario", SCENARIO), settings)
