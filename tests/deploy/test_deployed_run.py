import json
import shutil
from pathlib import Path

import pytest

from fedwinnow.curation.config.load_files import load_scenario
from fedwinnow.curation.watchdog import marked
from fedwinnow.simulations.datasets.toy_federation import SITES, write_toy_scenario
from fedwinnow.simulations.rehearsal.documented_steps import read_steps
from fedwinnow.simulations.rehearsal.loopback import open_rehearsal, write_deployment
from fedwinnow.simulations.runtimes.in_process import simulate

pytestmark = [
    pytest.mark.flower,
    pytest.mark.slow,
    pytest.mark.skipif(
        not Path("/proc").is_dir() or shutil.which("nginx") is None,
        reason="needs /proc and nginx (apt-get install nginx)",
    ),
]


def test_deployed_run_by_the_pages_equals_the_run_in_process():
    """Three agents, three nodes, each step of both pages taken: the same adapter, bit for bit."""
    with open_rehearsal(SITES) as stage:
        scenario = write_toy_scenario(stage.root / "toy")
        config = load_scenario(scenario, ["training.rounds=1", f"run.output={stage.root}/here"])
        mine = json.loads((simulate(config) / "record.json").read_text())
        stage.open()
        write_deployment(stage, config)
        for site in SITES:
            stage.admit(site)
            stage.join(site)
        stage.coordinator.step("run")
        folder = stage.coordinator.private / "runs" / "toy"
        theirs = json.loads((folder / "record.json").read_text())
        assert theirs["adapter"]["hash"] == mine["adapter"]["hash"]
        assert (folder / "adapter" / "adapter_model.safetensors").is_file()
        told = stage.coordinator.step("status")
        for site, silo in stage.silos.items():
            assert site in told
            assert "unchanged" in silo.step("watch")
            assert silo.taken == set(read_steps("silo.md"))
        assert stage.coordinator.taken == set(read_steps("coordinator.md"))
        root = stage.root
    assert not marked(f"FEDWINNOW_REHEARSAL={root}")
    assert not root.exists()
