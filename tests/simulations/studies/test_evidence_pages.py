"""Laws of the committed evidence: each page is the one that the code writes of its JSON file."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from fedwinnow.curation.config.typed_json import parse_tree
from fedwinnow.simulations.attacks import page as attacks
from fedwinnow.simulations.attacks.attacked_federation import Case
from fedwinnow.simulations.attacks.result import (
    AttackResult,
    AttackRow,
    CaseFigures,
    TriggerFigures,
)
from fedwinnow.simulations.studies import ablation
from fedwinnow.simulations.studies.ablation import GainRow
from fedwinnow.simulations.studies.definitions import Plan
from fedwinnow.simulations.studies.page import study_page
from fedwinnow.simulations.studies.result import ArmRow, ScorerRow, StudyResult

FOLDER = Path(__file__).parents[3] / "docs" / "evidence"
OTHERS = {"attacks", "bench_merging", "demo"}  # demo.json is older than the first lines of a page
STUDIES = sorted({path.stem for path in FOLDER.glob("*.json")} - OTHERS)
SIGNALS = [name for name in STUDIES if name.endswith("_signals")]


def read(name):
    return json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))


def row_of(tree):
    """A row of a study's file; files of before there were several domains count none."""
    kind = ScorerRow if tree["arm"] is None else ArmRow
    older = {"kept_by_domain": {}, "auroc_left_out": None, "auroc_left_out_by_corruption": {}}
    return parse_tree(older | tree | {"run": tree}, kind)


@pytest.mark.parametrize("name", [name for name in STUDIES if name not in SIGNALS])
def test_page_of_a_study_is_that_of_its_rows(name):
    """Read into typed rows and written again, byte for byte; so is a file of today's keys."""
    tree = read(name)
    rows = tuple(map(row_of, tree["rows"]))
    result = replace(parse_tree(tree | {"rows": []}, StudyResult), rows=rows)
    assert study_page(result) == (FOLDER / f"{name}.md").read_text(encoding="utf-8")
    written = json.loads(json.dumps(result.to_json()))
    assert [row | old for row, old in zip(written["rows"], tree["rows"], strict=True)] == (
        written["rows"]
    )
    if all("kept_by_domain" in row for row in tree["rows"] if row["arm"]):
        assert json.dumps(written) == json.dumps(tree)


@pytest.mark.parametrize("name", SIGNALS)
def test_page_of_an_ablation_is_that_of_its_rows(name):
    """The same for what each signal gains."""
    tree = read(name)
    rows = [parse_tree(row | {"gain": row}, GainRow) for row in tree["rows"]]
    splits = dict.fromkeys((row.split for row in rows), lambda _: None)
    plan = Plan(title=tree["study"], seeds=tuple(tree["seeds"]), splits=splits, about={})
    said = ablation.ablation_page(plan, rows, tree["command"])
    assert said == (FOLDER / f"{name}.md").read_text(encoding="utf-8")
    assert json.dumps([row.to_json() for row in rows]) == json.dumps(tree["rows"])


def test_page_of_the_attacks_is_that_of_its_rows():
    """The same for the attack table."""
    tree = read("attacks")
    rows = tuple(
        AttackRow(
            case=parse_tree(row, Case),
            figures=parse_tree(row, CaseFigures),
            trigger=parse_tree(row["trigger"], TriggerFigures),
            commit=row["commit"],
            bed=row["bed"],
        )
        for row in tree["rows"]
    )
    result = replace(parse_tree(tree | {"rows": []}, AttackResult), rows=rows)
    assert attacks.attack_page(result) == (FOLDER / "attacks.md").read_text(encoding="utf-8")
    assert json.dumps(result.to_json()) == json.dumps(tree)
