"""The toy federation as a deployment on disk."""

from pathlib import Path

from fedwinnow.client.boundary.guarded_site import site_key
from fedwinnow.curation.config.coordinator import MemberSection
from fedwinnow.curation.config.load_files import load_scenario
from fedwinnow.curation.config.strict_toml import to_toml
from fedwinnow.curation.protocol.keys import PrivateKey
from fedwinnow.simulations.datasets.toy_federation import write_toy_scenario
from fedwinnow.simulations.rehearsal.toy_deployment import deployed_config, site_config


def write_toy_deployment(folder: Path, *, samples: int = 12, seed: int = 0) -> Path:
    """Write ``run.toml``, ``SITE/site.toml`` for each site, and everything that they name.

    Args:
        folder: Where to write; keep its path short, as each site's socket lies below it.
        samples: Samples of each silo.
        seed: Seed of the model, the data and the run.

    Returns:
        The path of ``run.toml``.
    """
    scenario = load_scenario(write_toy_scenario(folder, samples=samples, seed=seed))
    key = PrivateKey.new()
    key.save(folder / "coordinator.key")
    members = []
    for site in scenario.sites:
        own = folder / site.name
        config = site_config(scenario, site, own, key.public.text)
        own.mkdir(exist_ok=True)
        (own / "site.toml").write_text(to_toml(config), encoding="utf-8")
        public = site_key(Path(config.agent.key)).public
        members.append(MemberSection(name=site.name, key=public.text))
    run = deployed_config(scenario, members, str(folder / "coordinator.key"))
    path = folder / "run.toml"
    path.write_text(to_toml(run), encoding="utf-8")
    return path
