"""The toy federation as a deployment on disk: keys, a ``site.toml`` for each silo, a ``run.toml``.

What tests and rehearsals start agents from; its policies allow small groups, as its silos are tiny.
"""

from dataclasses import replace
from pathlib import Path

from fedwinnow.curation.config.coordinator import CoordinatorSection, MemberSection
from fedwinnow.curation.config.run import RunConfig
from fedwinnow.curation.config.site import AgentSection, PolicySection, SiteConfig, SiteSection
from fedwinnow.curation.config.training import StudySection


def deployed_config(scenario: RunConfig, members: list[MemberSection], key: str) -> RunConfig:
    """A simulated run as one that members join: no data of theirs is in it."""
    return replace(
        scenario,
        sites=(),
        members=tuple(members),
        study=StudySection(),
        coordinator=CoordinatorSection(key=key, pause=0.0),
    )


def site_config(scenario: RunConfig, site: SiteSection, own: Path, coordinator: str) -> SiteConfig:
    """One silo's own word."""
    return SiteConfig(
        site=site,
        model=scenario.model,
        anchors=scenario.anchors,
        policy=PolicySection(
            coordinator=coordinator, allow_individual_updates=True, smallest_group=1
        ),
        agent=AgentSection(
            socket=str(own / "run" / "agent.sock"),
            token=str(own / "run" / "token"),
            key=str(own / "agent.key"),
        ),
        work=str(own / "work"),
    )
