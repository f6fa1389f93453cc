"""Fixtures of the fault harness: one unbroken run to compare with, one place to fork from."""

import pytest
from fault_box import SETTINGS, Box, children

from fedwinnow.curation.scenario import load_scenario
from fedwinnow.simulations.toy import write_toy_scenario


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
