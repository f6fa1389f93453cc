"""Laws of a run's record: pinned keys, read as it was written, errors that name the key."""

import json
import re
from dataclasses import replace

import pytest
from report_record import SITES, make_record, make_tree

from fedwinnow.curation.errors import DataError
from fedwinnow.server.report.record import RecordedClusters, RecordedThreshold, read_record

FIGURES = (
    "auroc", "auroc_within", "precision", "recall", "accuracy", "f1", "auroc_by_corruption",
    "recall_by_site",
)  # fmt: skip
KEYS = {
    "": (
        "run", "created", "seed", "seconds", "scorer", "threshold", "forecast", "public", "sites",
        "initial_loss", "arms", "arm_differences", "phases", "generations", "versions", "members",
        "adapter", "command", "remarks", "selection",
    ),
    "scorer": ("name", "unit"),
    "threshold": ("name", "value", "per_site", "evidence"),
    "public": ("scores", "kinds", "domains"),
    "sites.0": ("site", "samples", "kept", "unscored", "edges", "counts"),
    "arms.curated": ("kept", "kept_by_site", "steps", "eval_loss", "losses", "rounds"),
    "arms.curated.rounds.0": ("round", "eval_loss", "merge", "weights", "bounded", "sites"),
    "arms.curated.rounds.0.sites.law": ("samples", "losses"),
    "arm_differences.keep_all": ("mean", "low", "high", "reference"),
    "phases.0": ("phase", "round", "arm", "seconds", "bytes_down", "bytes_up", "missing"),
    "generations": ("prompts", "references", "before", "after"),
    "members.0": ("site", "samples", "base", "anchors"),
    "adapter": ("path", "hash", "rank"),
    "selection": (*FIGURES, "comparison"),
    "selection.comparison.ifd": FIGURES,
}  # fmt: skip
"""Path → keys, in the order of the file: programs of others read them."""


def at(tree, path):
    """The part of a tree at a dotted path."""
    for key in filter(None, path.split(".")):
        tree = tree[int(key)] if isinstance(tree, list) else tree[key]
    return tree


@pytest.mark.parametrize("path", KEYS)
def test_record_keys_are_those_of_the_file_in_their_order(path):
    """No key is renamed, moved, lost or new without this list saying so."""
    assert tuple(at(make_record().to_json(), path)) == KEYS[path]


def test_record_tells_clusters_only_where_there_are_some():
    """Without clusters there is no such key; with them it stands behind the adapter."""
    held = RecordedClusters(counts=(2, 1), quotas=(1, 1), centroids=((0.5,), (1.5,)))
    tree = replace(make_record(), clusters=held).to_json()
    order = list(tree)
    assert order[order.index("adapter") + 1] == "clusters"
    assert tree["clusters"] == {
        "counts": [2, 1],
        "quotas": [1, 1],
        "centroids": [[0.5], [1.5]],
    }


def test_record_is_read_as_it_was_written(tmp_path):
    """Tree → record → file → record → tree: nothing changes, infinities included."""
    infinite = {"name": "keep_all", "value": "-inf", "per_site": {"law": "inf"}, "evidence": {}}
    record = make_record({"threshold": infinite, "remarks": ["a remark"]})
    assert record.threshold.value == float("-inf")
    file = tmp_path / "record.json"
    file.write_text(json.dumps(record.to_json(), allow_nan=False))
    assert read_record(file) == record
    assert read_record(file).to_json()["threshold"] == infinite
    assert json.loads(file.read_text()) == make_tree() | {
        "threshold": infinite,
        "remarks": ["a remark"],
        "arms": record.to_json()["arms"],  # whose rounds say that nothing was bounded
    }


def test_record_of_an_earlier_or_a_later_version_is_read():
    """Keys that came later may be missing; unknown ones are left out."""
    old = make_tree()
    del old["threshold"]["per_site"]
    record = make_record(old | {"from_the_future": 1})
    assert (record.remarks, record.clusters, record.threshold.per_site) == ((), None, {})
    assert record.arms["curated"].rounds[0].bounded == {}


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        ("run", None, "run: expected a text, got None"),
        ("seed", 0.5, "seed: expected a whole number, got 0.5"),
        ("seed", True, "seed: expected a whole number, got True"),
        ("sites.0.kept", "many", "sites.0.kept: expected a whole number, got 'many'"),
        ("sites", {}, "sites: expected a list, got {}"),
        ("arms", [], "arms: expected an object, got []"),
        ("arms.curated.losses.1", "x", "arms.curated.losses.1: expected a number, got 'x'"),
        ("adapter", "here", "adapter: expected an object, got 'here'"),
        ("threshold.value", "high", "threshold.value: expected a number, got 'high'"),
    ],
)
def test_record_that_is_none_is_refused_by_file_and_key(tmp_path, path, value, said):
    """The error names the file, the key, what was expected, what came, and what to do."""
    tree, (*where, last) = make_tree(), path.split(".")
    node = at(tree, ".".join(where))
    node[int(last) if isinstance(node, list) else last] = value
    file = tmp_path / "record.json"
    file.write_text(json.dumps(tree))
    with pytest.raises(DataError, match=re.escape(said)) as error:
        read_record(file)
    assert str(file) in str(error.value)
    assert "give a run folder" in str(error.value)


@pytest.mark.parametrize("path", ["run", "selection", "adapter", "arms.curated.rounds.0.merge"])
def test_record_that_lacks_a_key_is_refused_by_its_name(tmp_path, path):
    """A key that every version wrote must be there, null or not."""
    tree, (*where, last) = make_tree(), path.split(".")
    del at(tree, ".".join(where))[last]
    file = tmp_path / "record.json"
    file.write_text(json.dumps(tree))
    with pytest.raises(DataError, match=re.escape(f"({path}: expected this key, got none)")):
        read_record(file)


@pytest.mark.parametrize("text", [None, "{", "[]", '"record"'])
def test_record_file_that_is_missing_or_no_object_is_refused(tmp_path, text):
    """No file, no JSON, no object: each names the file and says what to give."""
    file = tmp_path / "record.json"
    if text is not None:
        file.write_text(text)
    with pytest.raises(DataError, match=re.escape(str(file))) as error:
        read_record(file)
    assert "give a run folder" in str(error.value)


def test_record_shows_itself_in_a_line():
    """Run, scorer, what is kept, adapter: no histogram in a debugger or a notebook."""
    assert repr(make_record()) == (
        "RunRecord(run='demo', scorer='calibrated', kept=63 of 144 samples, adapter='adapter')"
    )
    assert repr(make_record({"adapter": None})).endswith("adapter=None)")


def test_record_counts_and_figures_are_those_of_its_parts():
    """Sums over sites; the run's scorer before the others; no figures without truth."""
    record = make_record()
    assert (record.kept, record.samples) == (20 + 21 + 22, 3 * 48)
    assert [*record.figures_by_scorer] == ["calibrated", "perplexity", "ifd"]
    assert make_record({"selection": None}).figures_by_scorer == {}
    assert [site.site for site in record.sites] == list(SITES)
    assert replace(record.sites[0], samples=0).share == 0.0


@pytest.mark.parametrize(
    ("value", "cut"), [(0.5, 0.5), (float("-inf"), None), (float("inf"), None), (None, None)]
)
def test_threshold_cuts_only_where_it_is_finite(value, cut):
    """An infinite threshold cuts nothing; a site's own counts only where it is a number."""
    own = {"law": value, "finance": 0.25}
    threshold = RecordedThreshold(name="fixed", value=value, per_site=own, evidence={})
    assert threshold.cut == cut
    assert threshold.cuts == {k: v for k, v in (("law", cut), ("finance", 0.25)) if v is not None}
