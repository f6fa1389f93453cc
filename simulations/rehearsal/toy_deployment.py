"""Configure the toy federation as a deployment: ``site.toml`` of each silo and ``run.toml``.

Tests and rehearsals start agents from it. Its policies allow small groups, as its silos are tiny.
"""

import math
from dataclasses import replace
from pathlib import Path

from fedwinnow.curation.config.coordinator import CoordinatorSection, MemberSection
from fedwinnow.curation.config.run import RunConfig
from fedwinnow.curation.config.site import AgentSection, PolicySection, SiteConfig, SiteSection
from fedwinnow.curation.config.training import StudySection


def deployed_config(scenario: RunConfig, members: list[MemberSection], key: str) -> RunConfig:
    """Turn a simulated run into one that members join, without the sites' data."""
    return replace(
        scenario,
        sites=(),
        members=tuple(members),
        study=StudySection(),
        coordinator=CoordinatorSection(key=key, pause=0.0),
    )


def site_config(scenario: RunConfig, site: SiteSection, own: Path, coordinator: str) -> SiteConfig:
    """Return one silo's ``site.toml``: data, model, policy, agent."""
    return SiteConfig(
        site=replace(site, round_counts_to=1, smallest_cell=1),  # a toy silo has a dozen samples
        model=scenario.model,
        anchors=scenario.anchors,
        policy=PolicySection(
            coordinator=coordinator,
            allow_individual_updates=True,
            smallest_group=1,
            max_sample_grad_norm=math.inf,  # the scenario is trained as its simulation is
        ),
        agent=AgentSection(
            socket=str(own / "run" / "agent.sock"),
            token=str(own / "run" / "token"),
            key=str(own / "agent.key"),
        ),
        work=str(own / "work"),
    )
