"""Load the three files that people write: a scenario, a deployed run, a site.

Paths in them may be relative to the file.
"""

from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path

from fedwinnow.curation.config.coordinator import QuorumSection
from fedwinnow.curation.config.run import RunConfig
from fedwinnow.curation.config.site import SiteConfig
from fedwinnow.curation.config.strict_toml import load_toml, require_setting
from fedwinnow.curation.errors import ConfigError
from fedwinnow.curation.protocol.keys import PublicKey
from fedwinnow.curation.protocol.phases import Phase


def load_scenario(path: Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Read a scenario; data, anchor and model paths may be relative to the file.

    Args:
        path: A TOML file with the sections of :class:`RunConfig`.
        overrides: Lines ``section.key=value`` that win over the file.

    Raises:
        ConfigError: the file, a key, a type or a value is wrong, or no site is named.
    """
    config = load_toml(path, RunConfig, overrides)
    if not config.sites:
        message = f"{path}: no [[sites]] entry; a simulation needs at least one site"
        raise ConfigError(message)
    folder = path.resolve().parent
    return replace(
        config,
        model=replace(config.model, name=_resolve_beside(folder, config.model.name)),
        teacher=replace(config.teacher, name=_resolve_beside(folder, config.teacher.name)),
        anchors=replace(config.anchors, path=_resolve_beside(folder, config.anchors.path)),
        sites=tuple(
            replace(site, data=_resolve_beside(folder, site.data)) for site in config.sites
        ),
    )


def load_run(path: Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Read a ``run.toml``: a run that members join with data of their own.

    Paths may be relative to the file; the model and the anchors are those of the sites.

    Raises:
        ConfigError: the file, a key, a type or a value is wrong; it names sites, no key or no
            member; or what it asks can never be answered.
    """
    config = load_toml(path, RunConfig, overrides)
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
    try:
        _check_members(config)
    except ConfigError as error:
        message = f"{path}: {error}"
        raise ConfigError(message) from error
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
        ConfigError: the file, a key, a type or a value is wrong, or it describes a simulation.
    """
    config = load_toml(path, SiteConfig, overrides)
    try:
        _check_site(config)
    except ConfigError as error:
        message = f"{path}: {error}"
        raise ConfigError(message) from error
    folder = path.resolve().parent
    agent = config.agent
    return replace(
        config,
        site=replace(config.site, data=_resolve_beside(folder, config.site.data)),
        model=replace(config.model, name=_resolve_beside(folder, config.model.name)),
        teacher=replace(config.teacher, name=_resolve_beside(folder, config.teacher.name)),
        anchors=replace(config.anchors, path=_resolve_beside(folder, config.anchors.path)),
        agent=replace(
            agent,
            socket=str(folder / agent.socket),
            token=str(folder / agent.token),
            key=str(folder / agent.key),
        ),
        work=str(folder / config.work),
    )


def _check_members(config: RunConfig) -> None:
    """Refuse settings that would otherwise fail only after the wait for every member."""
    owners: dict[PublicKey, str] = {}
    for member in config.members:
        key = PublicKey.parse(member.key, f"members.key of {member.name}")
        if key in owners:
            message = (
                f"members.key: {owners[key]} and {member.name} have the same key; each site has "
                "its own, as its `fedwinnow site check` prints it"
            )
            raise ConfigError(message)
        owners[key] = member.name
    number = len(config.members)
    needed = {"run.minimum_sites": config.run.minimum_sites} | {
        f"quorum.{field.name}": getattr(config.quorum, field.name)
        for field in fields(QuorumSection)
    }
    for setting, sites in needed.items():
        require_setting(
            setting, sites, sites <= number, f"at most {number}, the number of [[members]]"
        )
    arms = config.study.arms
    require_setting(
        "study.arms", list(arms), arms == ("curated",), "['curated']; others are simulated only"
    )


def _check_site(config: SiteConfig) -> None:
    """Refuse settings that a ``site.toml`` may not have."""
    allowed = "false: a site.toml is a silo's own word, and with true its policy would not hold"
    require_setting("simulation", config.simulation, not config.simulation, allowed)
    phases = [str(phase) for phase in Phase if phase is not Phase.DONE]
    for phase in config.policy.phases:
        require_setting("policy.phases", phase, phase in phases, ", ".join(phases))
    agent = config.agent
    paths = {
        "work": config.work,
        "site.data": config.site.data,
        "anchors.path": config.anchors.path,
    }
    paths |= {"agent.socket": agent.socket, "agent.token": agent.token, "agent.key": agent.key}
    for setting, given in paths.items():
        require_setting(setting, given, given != "", "a path")


def _resolve_beside(folder: Path, name: str) -> str:
    """Return a path of a file as one that is valid anywhere; ``:split`` may follow a folder."""
    beside, stem = folder / name, name.rpartition(":")[0]
    found = beside.exists() or (stem != "" and (folder / stem).is_dir())
    return str(beside) if name and found else name


def site_configs(config: RunConfig, work: str) -> tuple[SiteConfig, ...]:
    """Return the simulated sites of a scenario, each as its own configuration."""
    return tuple(
        SiteConfig(
            site=site,
            model=config.model,
            teacher=config.teacher,
            anchors=config.anchors,
            work=f"{work}/{site.name}",
            simulation=True,
        )
        for site in config.sites
    )
