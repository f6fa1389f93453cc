"""Laws of the ablation: it refits the very scorer on the very signals, less what it names."""

import json
from dataclasses import replace
from functools import partial

import numpy as np
import pytest

from fedwinnow.client.runs.process_cache import ProcessCache
from fedwinnow.curation.config.load_files import load_scenario
from fedwinnow.curation.datatypes import PublicRows
from fedwinnow.curation.errors import ConfigError, OutputError
from fedwinnow.curation.scores.ranking_metrics import auroc
from fedwinnow.curation.signal_columns import GRADIENTS
from fedwinnow.simulations.datasets.toy_federation import write_toy_scenario
from fedwinnow.simulations.runtimes.in_process import simulate
from fedwinnow.simulations.studies import ablation as module
from fedwinnow.simulations.studies.ablation import COLUMNS, GROUPS, ablate, ablation
from fedwinnow.simulations.studies.definitions import Plan
from fedwinnow.simulations.studies.unforeseen_kinds import read_measured
from fedwinnow.strategies.scorers.calibrated import SIGNALS, calibrated

pytestmark = pytest.mark.flower  # whole federations, or Flower's own code: not seconds


@pytest.fixture(scope="module")
def cache():
    return ProcessCache()


@pytest.fixture(scope="module")
def finished(tmp_path_factory, cache):
    """A toy run whose scorer reads all there is, and its record."""
    scenario = write_toy_scenario(tmp_path_factory.mktemp("ablation"), samples=8)
    fast = ["training.rounds=1", "training.steps=1", "anchors.copies=1"]
    wide = ["run.trajectory=global", f"scorer.settings.signals={json.dumps([*SIGNALS])}"]
    config = load_scenario(scenario, [*fast, *wide, 'anchors.corruptions=["swap", "cut"]'])
    folder = simulate(config, cache=cache)
    return config, json.loads((folder / "record.json").read_text())


@pytest.fixture(scope="module")
def told(finished, cache, tmp_path_factory):
    """Rows by name and the page of a plan of one split and seed, with two groups."""
    config, _ = finished
    plan = Plan(title="toy", seeds=(0,), splits={"only": lambda _: config}, about={})
    folder = tmp_path_factory.mktemp("evidence")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "GROUPS", {name: GROUPS[name] for name in ("gradients", "length")})
        patch.setattr(module, "SAMPLES", 4)
        text = ablate(plan, folder=folder, command="study toy", cache=cache)
    assert text == (folder / "toy_signals.md").read_text()
    rows = json.loads((folder / "toy_signals.json").read_text())["rows"]
    return {row["without"]: row for row in rows}, text


def without(trajectory, columns):
    """The tables without some columns."""
    return tuple(
        replace(t, columns={n: v for n, v in t.columns.items() if n not in columns})
        for t in trajectory
    )


def test_ablation_of_nothing_is_the_run_itself(finished, told):
    """The first row is the run's own AUROC; costs are finite, that of the whole pass is above 0."""
    rows, _ = told
    assert rows["nothing"]["auroc_pooled"] == pytest.approx(finished[1]["selection"]["auroc"])
    assert rows["nothing"]["seconds_per_sample"] > 0
    assert all(np.isfinite(rows[name]["seconds_per_sample"]) for name in ("gradients", "length"))
    assert rows["typicality"]["seconds_per_sample"] is None


def test_ablation_of_a_group_is_the_scorer_fitted_without_its_columns(finished, told):
    """Tables without the columns, fitted and scored by hand, give the same AUROC."""
    measured = read_measured(finished[0])
    public = measured.public
    less = without(public.trajectory, GRADIENTS)
    scorer = calibrated(signals=[*SIGNALS])
    fitted = scorer.fit(PublicRows(trajectory=less, kinds=public.kinds, parents=public.parents))
    scores = [scorer.score(without(one, GRADIENTS), fitted) for one in measured.private]
    slow = auroc(np.concatenate(scores), measured.kinds == "clean")
    assert told[0]["gradients"]["auroc_pooled"] == pytest.approx(slow)


def test_ablation_page_has_a_line_for_each_case(told):
    """Every row of the JSON file has its line on the page, and every column has a group."""
    rows, text = told
    assert all(f"| {name} |" in text for name in rows)
    covered = frozenset().union(*(group.columns for group in GROUPS.values()))
    assert covered == COLUMNS - {"loss"}


def test_ablation_needs_truth_the_scorer_and_a_run(finished, cache, tmp_path):
    """Another scorer, no truth, or no run of these settings is a named error."""
    config, _ = finished
    other = replace(config, study=replace(config.study, truth=""))
    ask = partial(ablation, cache=cache)
    with pytest.raises(OutputError, match="finished run"):
        ask(other)
    moved = replace(config, run=replace(config.run, output=str(tmp_path)))
    with pytest.raises(OutputError, match="finished run"):
        ask(moved)
    plain = load_scenario(
        write_toy_scenario(tmp_path / "toy", samples=4),
        ["scorer.name=perplexity", "training.rounds=1", "training.steps=1"],
    )
    simulate(plain, cache=cache)
    with pytest.raises(ConfigError, match="calibrated"):
        ask(plain)
