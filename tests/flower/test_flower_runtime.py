import json
import os
import sys
import uuid
from pathlib import Path

import pytest
from repository import ROOT

from fedwinnow.cli import main
from fedwinnow.client.runs.tables import read_scores
from fedwinnow.curation.config.identity import run_id, sites_folder
from fedwinnow.curation.config.load_files import load_scenario
from fedwinnow.curation.watchdog import marked
from fedwinnow.simulations.datasets.toy_federation import SITES, write_toy_scenario
from fedwinnow.simulations.runtimes.flower import simulate_with_flower
from fedwinnow.simulations.runtimes.in_process import simulate

pytestmark = [
    pytest.mark.flower,
    pytest.mark.skipif(
        not Path("/proc").is_dir(), reason="left-over processes are sought in /proc"
    ),
]


@pytest.fixture(scope="module")
def scenario(tmp_path_factory) -> Path:
    """A toy federation on disk."""
    return write_toy_scenario(tmp_path_factory.mktemp("toy"))


@pytest.fixture
def mark(monkeypatch) -> str:
    """An entry that every process started from here inherits in its environment."""
    monkeypatch.setenv("FEDWINNOW_TEST_MARK", uuid.uuid4().hex)
    return f"FEDWINNOW_TEST_MARK={os.environ['FEDWINNOW_TEST_MARK']}"


def summary(folder: Path):
    """The run's record without times."""
    return json.loads((folder / "record.json").read_text())


def test_flower_run_equals_the_run_in_process(scenario, tmp_path, mark):
    """Flower and Ray carry the same bits: adapter, losses, threshold, scores, kept counts.

    The app is the repository itself, as in plain ``flwr run .``.
    """
    here = load_scenario(scenario, [f"run.output={tmp_path / 'here'}"])
    there = load_scenario(scenario, [f"run.output={tmp_path / 'there'}"])
    mine = summary(simulate(here))
    theirs = summary(simulate_with_flower(there, app=ROOT, at_once=1))
    assert theirs["adapter"]["hash"] == mine["adapter"]["hash"]
    for key in ("threshold", "forecast", "public", "sites", "arms", "selection"):
        assert theirs[key] == mine[key], key
    for site in SITES:
        first, second = (
            read_scores(sites_folder(c) / site / run_id(c) / "scores.parquet", c.scorer.name)
            for c in (here, there)
        )
        assert first[0] == second[0]
        assert first[2].tobytes() == second[2].tobytes()
    assert (tmp_path / "there" / "toy" / "report.html").is_file()
    assert not marked(mark)


def test_flower_run_fails_where_every_client_fails(scenario, tmp_path, mark, monkeypatch, capsys):
    """Silos with broken data fail the run: its cause is told, code 2, nothing is left running."""
    (tmp_path / "broken.jsonl").write_text("{", encoding="utf-8")
    broken = [f"sites.{i}.data={tmp_path / 'broken.jsonl'}" for i in range(len(SITES))]
    settings = [f"run.output={tmp_path}", *broken]
    argv = ["fedwinnow", "simulate", str(scenario), "--runtime", "flower"]
    argv += [part for item in settings for part in ("--set", item)]
    monkeypatch.setattr(sys, "argv", argv)
    with pytest.raises(SystemExit) as ended:
        main.main()
    said = "".join(capsys.readouterr())
    assert ended.value.code == 2, said
    assert "DataError" in said
    assert "broken.jsonl" in said
    assert not (tmp_path / "toy" / "adapter").exists()
    assert not marked(mark)
