"""Law of coming back with real silos: what was missed is made up for, and the silo trains."""

from dataclasses import dataclass, field

import pytest

from fedwinnow.client.runs.process_cache import ProcessCache
from fedwinnow.client.site import Site
from fedwinnow.curation.config.identity import sites_folder
from fedwinnow.curation.config.load_files import load_scenario, site_configs
from fedwinnow.server.run.driver import drive
from fedwinnow.server.run.fold import initial_state
from fedwinnow.server.run.run_folder import RunFolder
from fedwinnow.server.transport.interface import Delivery
from fedwinnow.simulations.datasets.toy_federation import write_toy_scenario
from fedwinnow.simulations.runtimes.in_process import InProcess


@dataclass
class Away:
    """A transport in process on which one silo is away in some phases."""

    inner: InProcess
    site: str
    phases: tuple[str, ...]
    made_up: list[str] = field(default_factory=list)

    def exchange(self, request, sites, *, deadline, earlier=None):
        """Everybody else is asked as usual."""
        away = request.header.phase in self.phases
        names = [
            name for name in sites or sorted(self.inner.sites) if not away or name != self.site
        ]
        if away:
            yield Delivery(site=self.site, reply=None, missing="it is away")
        for delivery in self.inner.exchange(request, names, deadline=deadline, earlier=earlier):
            if delivery.request is not None:
                self.made_up.append(delivery.request.header.phase)
            yield delivery


@pytest.mark.parametrize(
    ("phases", "made_up"),
    [
        (("probe", "warm_up", "measure"), ["probe", "measure"]),
        (("probe", "measure", "score", "select"), ["probe", "measure", "score", "select"]),
    ],
)
def test_returning_silo_takes_part_again(tmp_path, phases, made_up):
    """Away until the score or until training: it makes up, then scores, keeps and trains."""
    config = load_scenario(write_toy_scenario(tmp_path), ["scorer.name=tracin"])
    store = RunFolder.open(config, resume=False)
    shared = ProcessCache()
    sites = {
        one.site.name: Site(config=one, cache=shared)
        for one in site_configs(config, str(sites_folder(config)))
    }
    transport = Away(inner=InProcess(sites=sites), site="south", phases=phases)
    end = drive(initial_state(config, "returning"), transport, store=store)
    assert transport.made_up == made_up
    for record in end.records:
        assert ("south" in record.missing) == (record.phase in phases)
        if record.phase == "train":
            assert record.sites["south"].samples == end.kept["curated"]["south"] > 0
