"""Laws of a deployed run on real Flower whose processes are killed and whose disks are full.

SuperLink, proxy, three SuperNodes with their executors, three agents: started by the scripts of
``docs/deploy``, struck from outside, healed by ``supervise`` and by ``fedwinnow run``.
"""

import shutil
from pathlib import Path

import pytest
from fault_box import SETTINGS
from fault_flower import FULL, LONGEST, PAIRS, Run, name_of, survive

from fedwinnow.curation.adapters.checks import adapter_hash
from fedwinnow.curation.config.load_files import load_scenario
from fedwinnow.simulations.datasets.toy_federation import SITES, write_toy_scenario
from fedwinnow.simulations.rehearsal.loopback import open_rehearsal, write_deployment

pytestmark = [
    pytest.mark.faults,
    pytest.mark.flower,
    pytest.mark.skipif(
        not Path("/proc").is_dir() or shutil.which("nginx") is None,
        reason="needs /proc and nginx (apt-get install nginx)",
    ),
]


@pytest.fixture(scope="module")
def stage(tmp_path_factory):
    """Everything that the pages start, with agents whose policies allow many runs."""
    scenario = load_scenario(
        write_toy_scenario(tmp_path_factory.mktemp("toy"), samples=8), SETTINGS
    )
    with open_rehearsal(SITES) as stage:
        stage.open()
        write_deployment(stage, scenario)
        for site in SITES:
            file = stage.silos[site].private / "site.toml"
            text = file.read_text().replace("\nsummaries = 1\n", "\nsummaries = 1000\n")
            file.write_text(text.replace("\nmax_rounds = 20\n", "\nmax_rounds = 100000\n"))
            stage.admit(site)
            stage.join(site)
        yield stage


def test_faults_flower_ends_with_the_adapter_of_one_process(stage, unbroken):
    """Flower, its proxy and its processes change nothing: the same adapter, bit for bit."""
    run = Run(stage, "whole")
    process = run.start()
    assert process.wait(LONGEST) == 0, run.told()
    assert run.adapter() == adapter_hash(unbroken.state().finals["curated"])


def named(case, *marks):
    """A case by its name."""
    return pytest.param(*case, id=name_of(*case), marks=marks)


@pytest.mark.parametrize(
    ("who", "moment", "at"),
    [*map(named, PAIRS), *(named(case, pytest.mark.slow) for case in FULL)],
)
def test_faults_flower_run_survives(stage, unbroken, story, who, moment, at):
    """One command, one strike in each exchange: exit code 0, the same adapter, nobody missing."""
    story.update(where="Flower", broken=f"{who}, {'inside' if moment else 'boundary'}", at=at)
    run = Run(stage, name_of(who, moment, at), len(at))
    went_on = survive(run, who, moment, at)
    assert run.adapter() == adapter_hash(unbroken.state().finals["curated"])
    story.update(retries=run.retries(), went_on=went_on, outcome="same adapter")
