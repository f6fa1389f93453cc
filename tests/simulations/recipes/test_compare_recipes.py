"""Laws of ``fedwinnow recipes compare``, with whole runs of the toy federation."""

import json
import sys
from dataclasses import replace

import numpy as np
import pytest

from fedwinnow.cli import main
from fedwinnow.curation.errors import ConfigError, RunError
from fedwinnow.server.report import final_files
from fedwinnow.simulations.datasets.toy_federation import write_toy_scenario
from fedwinnow.simulations.recipes import compare as recipes
from fedwinnow.simulations.recipes.compare import at_rung, compare_recipes, load_recipes
from fedwinnow.simulations.recipes.recipe_files import GIVEN

pytestmark = pytest.mark.flower  # whole federations, or Flower's own code: not seconds

FAST = (
    "run.trajectory=none",
    "scorer.name=perplexity",
    "anchors.copies=1",
    "training.rounds=1",
    "training.steps=2",
)
STILL = "training.learning_rate=1e-9"


@pytest.fixture(scope="module")
def scenario(tmp_path_factory):
    """A toy federation."""
    return write_toy_scenario(tmp_path_factory.mktemp("toy"), samples=8)


@pytest.fixture(autouse=True)
def plain_report(monkeypatch):
    """Nobody looks at the pages."""
    monkeypatch.setattr(
        final_files, "write_report", lambda record, path: path.write_text(record.run)
    )


@pytest.fixture
def runs(monkeypatch):
    """Run folders that were really run."""
    done, simulate = [], recipes.simulate

    def watching(config, **arguments):
        done.append(config.run.name)
        return simulate(config, **arguments)

    monkeypatch.setattr(recipes, "simulate", watching)
    return done


def test_recipes_the_one_that_learns_wins_and_nothing_runs_twice(scenario, runs):
    """Three recipes: two stand still, one learns. A second call runs nothing and says the same."""
    groups = (STILL, "training.learning_rate=2e-9", "training.learning_rate=1e-2")
    found = compare_recipes(load_recipes([scenario], groups, FAST), seeds=2)
    assert found.winner == groups[2]
    assert found.tied == ()
    assert groups[2] in found.rungs[0].on
    assert len(runs) == len(set(runs)) == 3 + 2 * 2
    assert found.share_of_steps == pytest.approx((3 * 1 + 2 * 2 * 2) / (3 * 2 * 2))
    report = {one.name: one for one in found.report}
    assert report[groups[2]].difference == 0.0
    assert min(report[name].low for name in report if name != groups[2]) > 0
    assert found.anchors.choosing + found.anchors.reporting > 0
    del runs[:]
    assert compare_recipes(load_recipes([scenario], groups, FAST), seeds=2) == found
    assert runs == []


def test_recipes_that_are_equal_tie_in_the_order_given(scenario, runs):
    """Two names of the same settings: one set of runs, the first stands first, the tie is told."""
    one = load_recipes([scenario], ("", "training.steps=2"), FAST)
    found = compare_recipes(one, seeds=1)
    assert found.winner == GIVEN
    assert found.tied == ("training.steps=2",)
    assert found.rungs[0].placed[1].difference == 0.0
    assert len(runs) <= 1


def test_recipes_one_alone_is_run_and_reported(scenario):
    """Nothing to choose from: it wins, and costs all of its steps."""
    found = compare_recipes(load_recipes([scenario], (), FAST), seeds=1)
    assert found.winner == scenario.stem
    assert found.share_of_steps == 1.0
    assert len(found.report) == 1


def test_recipes_gradient_norms_stay_at_the_site_and_are_read(scenario):
    """Each site's early norms are in its own folder, finite and above 0."""
    (config,) = load_recipes([scenario], (), FAST).values()
    compare_recipes({"only": config}, seeds=1)
    norms = recipes._early_norms(at_rung(config, 1.0, config.run.seed))
    assert len(norms) == 3 * 2  # sites × steps
    assert np.isfinite(norms).all()
    assert min(norms) > 0


def test_recipes_batches_are_the_same_only_on_the_same_data(scenario):
    """Schedule and rate keep them; scorer, threshold and batch size do not."""
    (config,) = load_recipes([scenario], (), FAST).values()
    same = ("training.learning_rate=1e-4", "training.schedule=constant", "run.name=other")
    other = ("scorer.name=length", "threshold.settings.share=0.5", "training.batch_size=3")
    for groups, equal in ((same, True), (other, False)):
        for group in groups:
            (changed,) = load_recipes([scenario], (group,), FAST).values()
            assert (recipes._batches(changed) == recipes._batches(config)) is equal


def test_recipes_a_run_that_breaks_is_named(scenario):
    """A recipe that keeps nothing ends the comparison by its name and seed."""
    lost = 'threshold={name="fixed", settings={value=1e9}}'
    config = load_recipes([scenario], ("", "training.steps=1"), FAST)
    bad = next(iter(load_recipes([scenario], (), (*FAST, lost)).values()))
    with pytest.raises(RunError, match="recipe 'bad', seed 0"):
        compare_recipes({**config, "bad": bad}, seeds=1)


def test_recipes_that_cannot_be_compared_are_refused(scenario):
    """Another model length, other anchors, no training, groups on two files, copies: each named."""
    (config,) = load_recipes([scenario], (), FAST).values()
    for section, change in (
        ("model", {"max_length": 64}),
        ("anchors", {"reference": 0.3}),
        ("training", {"rounds": 0}),
    ):
        other = replace(config, **{section: replace(getattr(config, section), **change)})
        with pytest.raises(ConfigError, match=rf"'b'.*{section}"):
            compare_recipes({"a": config, "b": other}, seeds=1)
    more = replace(config, anchors=replace(config.anchors, copies=3))
    assert recipes._comparable({"a": config, "b": more}) is config
    with pytest.raises(ConfigError, match="--recipe"):
        load_recipes([scenario, scenario], ("a.b=1",))
    with pytest.raises(ConfigError, match="distinct"):
        load_recipes([scenario, scenario], ())


def test_recipes_command_prints_rungs_choice_and_note(scenario, monkeypatch, capsys):
    """As typed: a table a rung, the choice, and that other anchors report; JSON holds the same."""
    for extra in ((), ("--json",)):
        words = ["fedwinnow", "recipes", "compare", str(scenario), "--seeds", "1", *extra]
        words += ["--recipe", "", "--recipe", STILL]
        words += [word for line in FAST for word in ("--set", line)]
        monkeypatch.setattr(sys, "argv", words)
        with pytest.raises(SystemExit) as stop:
            main.main()
        assert not stop.value.code
        printed = capsys.readouterr().out
        if extra:
            assert json.loads(printed)["winner"] == GIVEN
        else:
            assert "Rung 1" in printed
            assert f"choice: {GIVEN}" in printed
            assert "the other half reports" in printed
