"""Laws of the example package: installed as anyone's, found by name, lawful, and it runs."""

import json
import runpy
import shutil
import subprocess
import sys

import pytest
from repository import ROOT

from fedwinnow.cli.plugins import plugin_rows
from fedwinnow.curation.config.load_files import load_scenario
from fedwinnow.simulations.datasets.toy_federation import write_toy_scenario
from fedwinnow.simulations.runtimes.in_process import simulate
from fedwinnow.strategies import registry
from fedwinnow.strategies.conformance.check import check_registered

pytestmark = pytest.mark.flower  # whole federations, or Flower's own code: not seconds

EXAMPLE = ROOT / "docs" / "examples" / "fedwinnow-example"
SIX = {
    "scorer": "typical_loss",
    "threshold": "otsu",
    "ordering": "interleaved",
    "objective": "trimmed",
    "weighting": "tempered",
    "merging": "medoid",
}


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The package in a throw-away folder on the path, as pip puts it there without a network."""
    place = tmp_path_factory.mktemp("install")
    shutil.copytree(EXAMPLE, place / "source")  # a build leaves files beside its sources
    words = ("--no-deps", "--no-build-isolation", "--no-index", "--quiet", "--target")
    done = subprocess.run(
        [sys.executable, "-m", "pip", "install", *words, place / "target", place / "source"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(place / "target"))
        registry._installed.cache_clear()
        yield place / "target"
    registry._installed.cache_clear()


@pytest.mark.usefixtures("installed")
def test_example_plug_ins_are_listed_with_package_and_paper():
    """All six stand in the table, from their package, sound, with source and settings explained."""
    rows = {(row["kind"], row["name"]): row for row in plugin_rows()}
    for key in SIX.items():
        row = rows[key]
        assert row["package"] == "fedwinnow-example 0.1.0"
        assert row["broken"] == ""
        assert "http" in row["paper"] or row["paper"] == "control"
        assert all(one["about"] for one in row["settings"])


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize(("kind", "name"), SIX.items())
def test_example_plug_in_keeps_the_laws_of_its_kind(kind, name):
    """Every law holds, required or usual."""
    assert [one for one in check_registered(kind, name, {}) if not one.holds] == []


@pytest.mark.usefixtures("installed")
def test_example_package_passes_its_own_tests():
    """The tests that an author copies are true."""
    found = runpy.run_path(str(EXAMPLE / "tests" / "test_laws.py"))
    tests = [one for name, one in found.items() if name.startswith("test_")]
    assert len(tests) == len(SIX)
    for one in tests:
        one()


@pytest.mark.usefixtures("installed")
def test_example_plug_ins_run_a_whole_federation(tmp_path):
    """A toy federation with all six by name ends with an adapter, and its manifest names them."""
    scenario = write_toy_scenario(tmp_path, samples=8)
    places = {
        "scorer": "scorer",
        "threshold": "threshold",
        "ordering": "training.ordering",
        "objective": "training.objective",
        "weighting": "weighting",
        "merging": "merging",
    }
    words = [f"{places[kind]}.name={name}" for kind, name in SIX.items()]
    words += [f"{places[kind]}.settings={{}}" for kind in SIX]
    folder = simulate(load_scenario(scenario, words))
    manifest = json.loads((folder / "manifest.json").read_text())
    assert {kind: manifest["plugins"][kind]["name"] for kind in SIX} == SIX
    assert (folder / "adapter" / "adapter_model.safetensors").is_file()
