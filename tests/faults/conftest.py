"""Fixtures of the fault harness: one unbroken run, breaks, and what is told of each case."""

from pathlib import Path

import pytest
from fault_box import SETTINGS, Box, children
from fault_breaks import Break
from fault_evidence import Evidence

from fedwinnow.curation.config.load_files import load_scenario
from fedwinnow.simulations.datasets.toy_federation import write_toy_scenario


@pytest.fixture(scope="session")
def context():
    """Where child processes come from."""
    return children()


@pytest.fixture(scope="session")
def scenario(tmp_path_factory):
    """A toy federation of three silos of eight samples."""
    return load_scenario(write_toy_scenario(tmp_path_factory.mktemp("toy"), samples=8), SETTINGS)


@pytest.fixture(scope="session")
def unbroken(scenario, context, tmp_path_factory):
    """The run that nothing happened to."""
    box = Box.of(scenario, tmp_path_factory.mktemp("unbroken"))
    assert box.live(context) == [0], box.log.read_text()
    return box


@pytest.fixture
def story(record_property):
    """What a case tells of itself: where, what broke in which exchanges, outcome, retries."""
    told: dict = {}
    record_property("story", told)
    return told


@pytest.fixture
def breaks(story, request, tmp_path):
    """Makes the break of a case, and tells of it."""

    def one(**rest):
        broken = Break(marks=tmp_path / "marks", story=story, **rest)
        place = f"at {broken.site}" if broken.site else "at the coordinator"
        how = f"{broken.what} {place}, {broken.point}"
        story.update(where=request.module.WHERE, broken=how, at=broken.at)
        return broken

    return one


def pytest_addoption(parser):
    """``--evidence`` keeps results in a folder; cases that have one there are not run again."""
    parser.addoption("--evidence", type=Path, help="keep results as FOLDER/faults.jsonl and .md")


def pytest_configure(config):
    """Only where results are kept."""
    folder = config.getoption("--evidence", default=None)
    if folder is not None:
        config.pluginmanager.register(Evidence(Path(folder)), "fault-evidence")
