"""Laws of the report: every section, no request, no script, nothing unescaped, no NaN."""

import json
import re

import pytest
from report_record import SITES, make_record, make_tree

from fedwinnow.server.report import blocks
from fedwinnow.server.report.final_files import summary_json
from fedwinnow.server.report.page import render, write_report

SECTIONS = (
    "kept", "scores", "evidence", "comparison", "arms", "merging", "cost", "generations",
    "provenance",
)  # fmt: skip


def shown(page):
    return tuple(re.findall(r'<section id="(\w+)"', page))


@pytest.fixture
def blank(monkeypatch):
    """Empty pictures, for laws of the words around them: drawing takes seconds."""
    monkeypatch.setattr(blocks, "svg_element", lambda figure, name: f'<svg id="{name}"></svg>')


def test_report_shows_every_section_with_captions():
    """A whole record gives all nine sections, and a caption for each picture."""
    page = render(make_record())
    assert shown(page) == SECTIONS
    assert page.count("<svg") == page.count("<figcaption>") == 7
    for site in SITES:
        assert site in page


def test_report_makes_no_request_and_runs_no_script():
    """Nothing is loaded from outside, and no script is there."""
    page = render(make_record())
    assert not re.findall(r'(?:src|href)="(?!#|data:)', page)
    assert "<script" not in page
    assert "@import" not in page
    assert len(page) < 2_000_000


def test_report_escapes_hostile_text():
    """A site name or an answer with markup stays text."""
    tree = make_tree()
    tree["generations"]["after"] = ["<script>alert(1)</script>"]
    tree["sites"][0]["site"] = "<img src=x onerror=alert(1)>"
    page = render(make_record(tree))
    assert "<script" not in page
    assert "<img" not in page


@pytest.mark.usefixtures("blank")
def test_report_repeats_the_remarks_on_the_plan():
    """What spoke against the plan when the run began stands with its training losses."""
    assert "ends at 0.01" in render(make_record({"remarks": ["it ends at 0.01"]}))
    assert "ends at 0.01" not in render(make_record({"remarks": []}))


def test_report_ids_are_unique_over_pictures():
    """Two pictures never share an id, so that no clip path of one cuts the other."""
    found = re.findall(r'\bid="([^"]+)"', render(make_record()))
    assert len(found) == len(set(found))


@pytest.mark.parametrize(
    ("change", "absent"),
    [
        ({"selection": None}, "comparison"),
        ({"arms": {}, "arm_differences": {}}, "arms"),
        ({"phases": []}, "cost"),
        (
            {"generations": {"prompts": [], "references": [], "before": [], "after": []}},
            "generations",
        ),
    ],
)
def test_report_leaves_out_what_the_record_does_not_hold(change, absent):
    """No truth, no arms, no phases, no generations: the section is not there, the others are."""
    found = shown(render(make_record(change)))
    assert absent not in found
    assert {"kept", "provenance"} <= set(found)


def test_report_never_shows_nan():
    """Zero kept, an infinite threshold, one site, no scores: words instead of NaN."""
    tree = make_tree()
    tree["sites"] = [tree["sites"][0] | {"kept": 0, "samples": 0, "edges": [], "counts": []}]
    tree["threshold"] = {"name": "keep_all", "value": "-inf", "evidence": {"inseparable": 1.0}}
    tree["public"] = {"scores": [], "kinds": [], "domains": []}
    page = render(make_record(tree))
    assert not re.search(r"\bnan\b", page, flags=re.IGNORECASE)
    assert "cannot be told apart" in page


@pytest.mark.usefixtures("blank")
def test_report_says_where_every_silo_has_its_own_threshold():
    """Thresholds per site stand in the page as such, not as one that was agreed on."""
    tree = make_tree()
    tree["threshold"]["per_site"] = {"medicine": 0.3, "finance": 0.4, "law": 0.625}
    page = render(make_record(tree))
    assert "agreed on one threshold" not in page
    assert "0.3 … 0.625" in page
    assert "agreed on one threshold" in render(make_record())


@pytest.mark.parametrize("name", ["_law", "a$\\frac$b", "医院"])
def test_report_draws_any_name_as_it_is(name):
    """A name is no formula, no hidden label, and needs no glyph of the drawing font."""
    tree = json.loads(json.dumps(make_tree()).replace('"law"', json.dumps(name)))
    page = render(make_record(tree))
    pictures = re.findall(r"<svg.*?</svg>", page, flags=re.DOTALL)
    assert len(pictures) == 7
    assert sum(name in picture for picture in pictures) == 3  # kept, histograms, training


@pytest.mark.usefixtures("blank")
def test_report_verdict_claims_no_difference_that_the_interval_does_not_show():
    """An interval around 0 is told as such; one beside 0 as a difference, with its sign."""
    tree = make_tree()
    assert "lower evaluation loss than training on everything" in render(make_record(tree))
    tree["arm_differences"]["keep_all"] = {
        "mean": 0.01, "low": -0.1, "high": 0.2, "reference": "curated",
    }  # fmt: skip
    assert "cannot tell that from no difference" in render(make_record(tree))
    tree["arm_differences"]["keep_all"] |= {"mean": -0.1, "low": -0.2, "high": -0.05}
    assert "higher evaluation loss than training on everything" in render(make_record(tree))


@pytest.mark.usefixtures("blank")
@pytest.mark.parametrize("measured", [0, 1, 2])
def test_report_draws_losses_by_round_where_they_were_measured(measured):
    """Fewer than two measured rounds, or a gap, make no curve; the page stands anyway."""
    tree = make_tree()
    for arm in tree["arms"].values():
        for one in arm["rounds"][measured:]:
            one["eval_loss"] = None
    assert ("Evaluation loss after each round" in render(make_record(tree))) == (measured == 2)


@pytest.mark.usefixtures("blank")
def test_report_names_who_was_missing():
    """A site that did not answer stands in the page with its reason."""
    tree = make_tree()
    tree["phases"][1]["missing"] = {"law": "refused (policy): no"}
    assert "refused (policy): no" in render(make_record(tree))


@pytest.mark.usefixtures("blank")
def test_report_file_is_written_whole(tmp_path):
    """The file holds the page."""
    record = make_record()
    write_report(record, tmp_path / "run" / "report.html")
    assert (tmp_path / "run" / "report.html").read_text(encoding="utf-8") == render(record)


def test_summary_is_strict_json_with_the_promised_keys():
    """An infinite threshold is null; the file parses without NaN or Infinity."""
    tree = make_tree()
    tree["threshold"]["value"] = "-inf"
    summary = summary_json(make_record(tree))
    assert json.loads(json.dumps(summary, allow_nan=False))["threshold"] is None
    assert set(summary) == {
        "run", "seconds", "scorer", "threshold", "sites", "arms", "selection", "adapter",
    }  # fmt: skip
    assert set(summary["arms"]["curated"]) == {"eval_loss", "kept", "steps"}


def test_report_says_what_the_guards_did():
    """A silo that a guard bounded stands in the page by name, with the reason."""
    tree = make_tree()
    assert "guards did" not in render(make_record(tree))
    tree["arms"]["curated"]["rounds"][0]["bounded"] = {"law": "its update was shortened"}
    assert "its update was shortened" in render(make_record(tree))
