"""The three files that people write: a scenario, a deployed run, a site; paths lie beside them."""

import functools
import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from fedwinnow.curation.config import (
    CoordinatorSection,
    DeadlinesSection,
    QuorumSection,
    RunConfig,
    SiteConfig,
)
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


def load_run(path: Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Read a ``run.toml``: a run that members join with data of their own.

    Paths may be relative to the file; the model and the anchors are those of the sites.

    Raises:
        ConfigError: the file, a key, a type or a value is wrong, or it names sites, no key or no
            member.
    """
    config = load(path, RunConfig, overrides)
    folder = path.resolve().parent
    if config.sites:
        message = (
            f"{path}: [[sites]] are simulated and named {[site.name for site in config.sites]}; a "
            "deployed run has [[members]] with name and key"
        )
        raise ConfigError(message)
    if not config.coordinator.key or not config.members:
        lacking = "coordinator.key" if not config.coordinator.key else "[[members]]"
        message = (
            f"{path}: {lacking} is missing; a deployed run needs the coordinator's key (make one "
            "with `fedwinnow keys coordinator.key`) and a [[members]] entry for each site"
        )
        raise ConfigError(message)
    output = folder / config.run.output
    key = folder / config.coordinator.key
    return replace(
        config,
        run=replace(config.run, output=str(output)),
        coordinator=replace(config.coordinator, key=str(key)),
    )


def load_site(path: Path, overrides: Sequence[str] = ()) -> SiteConfig:
    """Read a ``site.toml``; its paths may be relative to the file.

    Raises:
        ConfigError: the file, a key, a type or a value is wrong.
    """
    config = load(path, SiteConfig, overrides)
    folder = path.resolve().parent
    agent = config.agent
    return replace(
        config,
        site=replace(config.site, data=_beside(folder, config.site.data)),
        model=replace(config.model, name=_beside(folder, config.model.name)),
        anchors=replace(config.anchors, path=_beside(folder, config.anchors.path)),
        agent=replace(
            agent,
            socket=str(folder / agent.socket),
            token=str(folder / agent.token),
            key=str(folder / agent.key),
        ),
        work=str(folder / config.work),
    )


def identity(config: RunConfig) -> str:
    """What makes a run what it is: everything but where its folder lies and how long it waits."""
    return canonical(
        replace(
            config,
            run=replace(config.run, output=""),
            deadlines=DeadlinesSection(),
            quorum=QuorumSection(),
            coordinator=CoordinatorSection(),
        )
    )


def run_id(config: RunConfig) -> str:
    """Our run id: the name, and a hash of every setting and of the local data and anchors.

    Equal runs find their own state, and a run on changed data is another run.
    """
    digest = hashlib.sha256(identity(config).encode())
    for source in (config.anchors.path, *(site.data for site in config.sites)):
        digest.update(_content(source).encode())
    return f"{config.run.name.replace('.', '-')}-{digest.hexdigest()[:12]}"


def _content(source: str) -> str:
    """Digest of a local file or of a folder's files; "" for a hub name, or where nothing is."""
    path = Path(source)
    files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    stats = [(file, file.stat()) for file in files if source and file.is_file()]
    return " ".join(_digest(str(file), s.st_size, s.st_mtime_ns) for file, s in stats)


@functools.lru_cache(maxsize=256)
def _digest(file: str, size: int, changed: int) -> str:  # noqa: ARG001 - a changed file is read anew
    with open(file, "rb") as data:  # noqa: PTH123 - the name is the cache's key
        return hashlib.file_digest(data, "sha256").hexdigest()


def sites_folder(config: RunConfig) -> Path:
    """Folder of the simulated sites' own folders, inside the run folder."""
    return Path(config.run.output) / config.run.name / "sites"


def _beside(folder: Path, name: str) -> str:
    beside = folder / name
    return str(beside) if name and beside.exists() else name
