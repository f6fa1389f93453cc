"""Laws of ``fedwinnow budget``: buckets by score, a law fitted to real runs, a section to paste."""

import json
import sys
import tomllib
from itertools import pairwise

import numpy as np
import pytest

from fedwinnow.cli import main
from fedwinnow.curation.config.load_files import load_scenario
from fedwinnow.curation.config.run import RunConfig
from fedwinnow.curation.config.strict_toml import parse
from fedwinnow.curation.datatypes import Sample
from fedwinnow.curation.errors import ConfigError, DataError
from fedwinnow.server.report import final_files, selection_sections
from fedwinnow.server.report.record import read_record
from fedwinnow.simulations.datasets.toy_federation import write_toy_scenario
from fedwinnow.simulations.recipes.choosing_holdout import scenario_holdout
from fedwinnow.simulations.recipes.data_budget import BudgetPlan, buckets, fit_budget
from fedwinnow.simulations.runtimes.in_process import simulate

pytestmark = pytest.mark.flower  # whole federations, or Flower's own code: not seconds

FAST = (
    "run.trajectory=none",
    "scorer.name=perplexity",
    "anchors.copies=1",
    "training.rounds=1",
    "training.steps=1",
)
PLAN = BudgetPlan(steps=4, buckets=3, passes=(1, 2, 4), seeds=1, most=6, rate=0.5)
SAMPLES = [Sample(id=f"{i:02d}", prompt="p", response="r") for i in range(22)]


@pytest.fixture(autouse=True)
def plain_report(monkeypatch):
    """Nobody looks at the pages."""
    monkeypatch.setattr(
        final_files, "write_report", lambda record, path: path.write_text(record.run)
    )


@pytest.fixture(scope="module")
def scenario(tmp_path_factory):
    """A toy federation."""
    return write_toy_scenario(tmp_path_factory.mktemp("toy"), samples=10)


@pytest.fixture(scope="module")
def found(scenario):
    """A fitted budget."""
    return fit_budget(load_scenario(scenario, FAST), PLAN)


def test_buckets_are_equal_parts_in_order_of_score():
    """No sample of a bucket scores below one of the next; all have one size, up to the most."""
    scores = np.random.default_rng(0).permutation(22).astype(float)
    place = {sample.id: score for sample, score in zip(SAMPLES, scores, strict=True)}
    for most, size in ((100, 5), (3, 3)):
        parts = buckets(SAMPLES, scores, 4, most=most, seed=0)
        ranges = [[place[one.id] for one in part] for part in parts.values()]
        assert [len(part) for part in ranges] == [size] * 4
        assert all(min(a) > max(b) for a, b in pairwise(ranges))


def test_buckets_ignore_the_order_of_samples():
    """Silos may come in any order, ties too."""
    scores = np.arange(22.0) // 4
    turned = buckets(SAMPLES[::-1], scores[::-1], 3, most=4, seed=1)
    assert turned == buckets(SAMPLES, scores, 3, most=4, seed=1)


def test_buckets_that_would_be_empty_are_refused():
    """Fewer samples than buckets: a named error."""
    with pytest.raises(DataError, match="--buckets"):
        buckets(SAMPLES[:2], np.zeros(2), 3, most=4, seed=0)


def test_budget_fit_is_of_real_runs(found):
    """Bucket losses fall with passes, the fit is near them, the budget counts samples seen."""
    assert found.measured.shape == (3, 3)
    assert (np.diff(found.measured, axis=1) < 0).all()
    assert found.fit.error < 0.02
    assert found.seen == 4 * 2 * 3  # steps × batch × sites


def test_budget_section_runs_and_keeps_what_it_says(scenario, found):
    """The printed [threshold] is a valid section; a run with it keeps the share that was told."""
    tree = tomllib.loads(found.section())
    assert parse(tree, RunConfig).threshold.name == "budget"
    lines = [f"threshold.{key}={json.dumps(value)}" for key, value in (("name", "budget"),)]
    lines += [
        f"threshold.settings.{key}={json.dumps(value)}" for key, value in found.settings().items()
    ]
    reset = ("threshold.settings={}",)
    folder = simulate(load_scenario(scenario, (*FAST, *reset, *lines, "run.name=pasted")))
    record = read_record(folder / "record.json")
    evidence = record.threshold.evidence
    assert evidence["buckets_kept"] == found.best
    assert evidence["expected_loss"] == pytest.approx(found.expected[found.best - 1], rel=1e-4)
    assert evidence["experimental"] == 1.0
    assert "experiment for LoRA" in str(selection_sections.evidence(record))


def test_budget_choosing_anchors_are_not_those_that_report(scenario):
    """The halves share no item, hold all, and an item's half is the same in every seed."""
    halves = {}
    for seed in (0, 1, 2):
        one = scenario_holdout(load_scenario(scenario, (f"run.seed={seed}",)))
        assert 0 < one.choosing.sum() < len(one.ids)
        for name, chooses in zip(one.ids, one.choosing, strict=True):
            assert halves.setdefault(name, bool(chooses)) == bool(chooses)


def test_budget_doubts_are_told(found):
    """That the law is an experiment is always said."""
    assert "experiment" in found.doubts()[0]


@pytest.mark.parametrize(
    "changes",
    [
        {"steps": 0},
        {"buckets": 1},
        {"passes": (1, 2)},
        {"passes": (4, 2, 1)},
        {"passes": ()},
        {"passes": (0, 1, 2)},
        {"rate": 0.0},
    ],
)
def test_budget_plan_names_the_option(changes):
    """Each option out of range is named."""
    with pytest.raises(ConfigError, match=next(iter(changes))):
        BudgetPlan(**({"steps": 1} | changes))


def test_budget_command_prints_a_table_and_repeats(scenario, found, tmp_path, monkeypatch, capsys):
    """As typed: buckets, the doubt, and a file with the very numbers of an earlier fit."""
    out = tmp_path / "threshold.toml"
    words = ["fedwinnow", "budget", scenario, "--steps", 4, "--buckets", 3, "--passes", "1,2,4"]
    words += ["--seeds", 1, "--most", 6, "--rate", 0.5, "--out", out]
    words += [word for line in FAST for word in ("--set", line)]
    monkeypatch.setattr(sys, "argv", [str(word) for word in words])
    with pytest.raises(SystemExit) as stop:
        main.main()
    printed = capsys.readouterr().out
    assert not stop.value.code
    assert "utility b" in printed
    assert "experiment" in printed
    assert out.read_text(encoding="utf-8") == found.section()
