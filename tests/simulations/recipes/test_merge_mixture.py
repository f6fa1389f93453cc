"""Laws of measured mixtures: what is said of a merge is what it does, and can be used."""

import tomllib

import numpy as np
import pytest

from fedwinnow.client.runs.process_cache import ProcessCache
from fedwinnow.curation.config.load_files import load_scenario
from fedwinnow.curation.config.scoring import PluginSection
from fedwinnow.curation.errors import ConfigError
from fedwinnow.simulations.datasets.toy_federation import write_toy_scenario
from fedwinnow.simulations.recipes.merge_mixture import fit_mixture, section_text
from fedwinnow.simulations.runtimes.in_process import simulate
from fedwinnow.strategies.registry import build

pytestmark = pytest.mark.flower  # whole federations, or Flower's own code: not seconds


@pytest.fixture(scope="module")
def shop():
    return ProcessCache()


@pytest.fixture(scope="module")
def run(tmp_path_factory, shop):
    """A finished toy run of one round that kept its adapters, forward signals only."""
    scenario = write_toy_scenario(tmp_path_factory.mktemp("toy"), samples=8)
    config = load_scenario(
        scenario,
        (
            'run.trajectory="none"',
            'scorer={name="perplexity"}',
            'threshold={name="keep_all"}',
            'study.arms=["curated"]',
            "training.rounds=1",
            "keep.adapters=true",
        ),
    )
    return simulate(config, cache=shop)


def test_mixture_measures_what_it_says_and_writes_a_usable_section(run, shop):
    """A site alone, all alike and draws; the section builds the weighting with the same weights."""
    found = fit_mixture(run, count=5, cache=shop)
    assert [max(one.weights.values()) for one in found.runs[:3]] == [1.0, 1.0, 1.0]
    assert found.alike == dict(found.runs[3].losses)
    assert sum(found.weights.values()) == pytest.approx(1.0)
    assert set(found.measured) == {"sums", "words"}
    again = fit_mixture(run, count=5, cache=shop)
    assert again == found
    section = tomllib.loads(section_text(found))["weighting"]
    weigh = build("weighting", section["name"], PluginSection(**section).settings)
    weights = weigh(dict.fromkeys(found.weights, 5))
    assert np.allclose([weights[s] for s in found.weights], [*found.weights.values()], atol=1e-6)


def test_mixture_needs_more_merges_than_sites(run, shop):
    """Three sites need five mixtures: the law has four numbers a category."""
    with pytest.raises(ConfigError, match="at least 5"):
        fit_mixture(run, count=4, cache=shop)
