"""A scenario file: one TOML that holds a whole simulated federation, with paths beside it."""

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from fedwinnow.curation.config import RunConfig
from fedwinnow.curation.errors import ConfigError
from fedwinnow.curation.settings import canonical, load


def load_scenario(path: Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Read a scenario; data, anchor and model paths may be relative to the file.

    Args:
        path: A TOML file with the sections of :class:`RunConfig`.
        overrides: Lines ``section.key=value`` that win over the file.

    Raises:
        ConfigError: the file, a key, a type or a value is wrong, or no site is named.
    """
    config = load(path, RunConfig, overrides)
    if not config.sites:
        message = f"{path}: no [[sites]] entry; a simulation needs at least one site"
        raise ConfigError(message)
    folder = path.resolve().parent
    return replace(
        config,
        model=replace(config.model, name=_beside(folder, config.model.name)),
        anchors=replace(config.anchors, path=_beside(folder, config.anchors.path)),
        sites=tuple(replace(site, data=_beside(folder, site.data)) for site in config.sites),
    )


def run_id(config: RunConfig) -> str:
    """Our run id: the name and a hash of every setting, so equal runs find their own state."""
    settings = canonical(replace(config, run=replace(config.run, output="")))
    digest = hashlib.sha256(settings.encode())
    return f"{config.run.name.replace('.', '-')}-{digest.hexdigest()[:12]}"


def sites_folder(config: RunConfig) -> Path:
    """Folder of the simulated sites' own folders, inside the run folder."""
    return Path(config.run.output) / config.run.name / "sites"


def _beside(folder: Path, name: str) -> str:
    beside = folder / name
    return str(beside) if name and beside.exists() else name
