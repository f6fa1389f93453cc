"""Planted noise: exact counts, recorded truth, other means than the calibration's."""

import ast
import inspect
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedwinnow.client.data import corruption
from fedwinnow.client.data.samples import open_samples
from fedwinnow.curation.config.scoring import ColumnsSection
from fedwinnow.curation.datatypes import Sample
from fedwinnow.curation.errors import ConfigError, DataError, OutputError
from fedwinnow.simulations.datasets import planted_noise
from fedwinnow.simulations.datasets.demo_texts import write_samples
from fedwinnow.simulations.datasets.planted_noise import EVERYDAY, KINDS, plant

SINGLE = ("swap", "cut", "delete", "substitute", "noise")


def silo(number, domain="law", length=12):
    return [
        Sample(
            id=f"{domain}{i:030x}",
            prompt=f"prompt {i} on {domain}",
            response=" ".join(f"{domain}{i}word{j}" for j in range(length)),
            domain=domain,
            labels={"licence": "CC0"},
        )
        for i in range(number)
    ]


@settings(max_examples=60)
@given(
    number=st.integers(2, 40),
    share=st.floats(0, 1),
    kinds=st.lists(st.sampled_from(SINGLE), unique=True, min_size=1),
    seed=st.integers(0, 2**31),
)
def test_plant_corrupts_exactly_its_share(number, share, kinds, seed):
    """Algebra: round(share · n) samples change, kinds equal within one, all else stays itself."""
    clean = silo(number)
    planted = plant(clean, share=share, kinds=kinds, seed=seed)
    counts = Counter(one.labels["corruption"] for one in planted)
    assert counts.pop("clean", 0) == number - round(share * number)
    assert set(counts) <= set(kinds)
    each = [counts.get(kind, 0) for kind in kinds]
    assert max(each) - min(each) <= 1
    for one, other in zip(clean, planted, strict=True):
        assert (one.prompt, one.domain) == (other.prompt, other.domain)
        assert other.labels["licence"] == "CC0"
        same = other.labels["corruption"] == "clean"
        assert (one.response.split() == other.response.split()) == same
        assert (one.id == other.id) == same
        assert other.response.split()


def test_plant_repeats_with_its_seed():
    """Law: equal seeds plant alike, other seeds elsewhere; the samples given stay as they were."""
    clean = silo(30)
    found = plant(clean, share=0.5, kinds=SINGLE, seed=1)
    assert found == plant(clean, share=0.5, kinds=SINGLE, seed=1)
    assert found != plant(clean, share=0.5, kinds=SINGLE, seed=2)
    assert clean == silo(30)


def test_planted_swaps_rotate_through_the_silo():
    """Law: with swaps alone each answer is used once, and never under its own prompt."""
    clean = silo(9)
    planted = plant(clean, share=1.0, kinds=["swap"], seed=0)
    assert sorted(s.response for s in planted) == sorted(s.response for s in clean)
    assert all(a.response != b.response for a, b in zip(clean, planted, strict=True))


def test_planted_swaps_stay_in_their_domain():
    """Law: in a silo of two domains a swapped answer is of the sample's own domain."""
    planted = plant([*silo(6), *silo(6, "art")], share=1.0, kinds=["swap"], seed=0)
    assert all(one.response.startswith(one.domain) for one in planted)


def test_planted_wrong_domain_comes_from_elsewhere():
    """Law: another domain's answer, of the silo itself or of held-back samples."""
    both = plant([*silo(6), *silo(6, "art")], share=1.0, kinds=["wrong_domain"], seed=0)
    assert not any(one.response.startswith(one.domain) for one in both)
    foreign = silo(3, "art")
    planted = plant(silo(6), share=1.0, kinds=["wrong_domain"], seed=0, foreign=foreign)
    assert {one.response for one in planted} <= {one.response for one in foreign}


def test_planted_strengths_are_as_documented():
    """Law: cuts keep 20–50 % of characters, deletions 60 % of words, 40 % are replaced or mixed."""
    clean = silo(40, length=50)
    by_kind = {
        kind: plant(clean, share=1.0, kinds=[kind], seed=0)
        for kind in ("cut", "delete", "substitute", "noise")
    }
    for one, cut in zip(clean, by_kind["cut"], strict=True):
        assert one.response.startswith(cut.response)
        assert 0.15 < len(cut.response) / len(one.response) < 0.5
    assert {len(s.response.split()) for s in by_kind["delete"]} == {30}
    for one, other in zip(clean, by_kind["substitute"], strict=True):
        new = set(other.response.split()) - set(one.response.split())
        assert new <= set(EVERYDAY)
        assert sum(word in set(EVERYDAY) for word in other.response.split()) == 20
    for one, other in zip(clean, by_kind["noise"], strict=True):
        pairs = list(zip(one.response.split(), other.response.split(), strict=True))
        assert all(sorted(a) == sorted(b) and a[0] == b[0] for a, b in pairs)
        assert 10 <= sum(a != b for a, b in pairs) <= 20


def test_planted_noise_shares_no_code_with_the_calibration():
    """Law: neither module imports the other; the same kinds are made by other functions."""
    imports = {
        alias.name
        for node in ast.walk(ast.parse(inspect.getsource(planted_noise)))
        if isinstance(node, ast.ImportFrom | ast.Import)
        for alias in node.names
    } | {
        node.module
        for node in ast.walk(ast.parse(inspect.getsource(planted_noise)))
        if isinstance(node, ast.ImportFrom)
    }
    assert not any("corruption" in str(name) for name in imports)
    assert "simulations" not in inspect.getsource(corruption).split('"""', 2)[2]
    assert set(KINDS) == set(corruption.KINDS)


def test_plant_names_bad_settings():
    """Edge: shares out of range, unknown kinds, and no kind at all."""
    for share, kinds in ((1.5, SINGLE), (-0.1, SINGLE), (float("nan"), SINGLE), (0.5, ("blur",))):
        with pytest.raises(ConfigError, match="planted noise: expected a share in"):
            plant(silo(4), share=share, kinds=kinds, seed=0)
    with pytest.raises(ConfigError, match="no kind"):
        plant(silo(4), share=0.5, kinds=(), seed=0)


def test_plant_of_nothing_is_nothing():
    """Edge: an empty silo, and a share of zero without kinds."""
    assert plant([], share=0.5, kinds=SINGLE, seed=0) == []
    assert {s.labels["corruption"] for s in plant(silo(3), share=0, kinds=(), seed=0)} == {"clean"}


@pytest.mark.parametrize(
    ("kind", "length"), [("delete", 1), ("delete", 0), ("cut", 0), ("noise", 0), ("substitute", 0)]
)
def test_planted_kind_that_leaves_a_sample_as_it_is_is_named(kind, length):
    """Edge: no word of one can be deleted, and none of none changed; the sample is named."""
    with pytest.raises(DataError, match=f"{kind} leaves sample law0.* of {length} words"):
        plant(silo(2, length=length), share=1.0, kinds=[kind], seed=0)


def test_planted_cut_of_one_word_cuts_the_word():
    """Edge: an answer of one word loses its end."""
    for one, cut in zip(
        silo(5, length=1), plant(silo(5, length=1), share=1.0, kinds=["cut"], seed=0), strict=True
    ):
        assert one.response.startswith(cut.response)
        assert 0 < len(cut.response) < len(one.response)


def test_planted_noise_mixes_short_words_until_one_changes():
    """Edge: where a shuffle may leave all words as they are, it is drawn again."""
    short = [replace(one, response="ab aa c") for one in silo(30)]
    planted = plant(short, share=1.0, kinds=["noise"], seed=0)
    assert {one.response for one in planted} == {"ba aa c"}


def test_planted_swap_needs_another_answer():
    """Edge: one sample, equal answers, another domain or no domain are named."""
    for few in (silo(1), [*silo(1), *silo(1, "art")], [replace(s, response="a") for s in silo(3)]):
        with pytest.raises(DataError, match="swap needs two samples of domain 'law'"):
            plant(few, share=1.0, kinds=["swap"], seed=0)
    with pytest.raises(DataError, match="wrong_domain needs samples of another domain than 'law'"):
        plant(silo(3), share=1.0, kinds=["wrong_domain"], seed=0)


def test_written_samples_read_back(tmp_path):
    """Equivalence: JSONL written whole gives the same texts, domains and truth; else nothing."""
    planted = plant(silo(6), share=0.5, kinds=SINGLE, seed=0)
    write_samples(tmp_path / "new" / "x.jsonl", planted)
    columns = ColumnsSection(domain="domain", labels=("corruption",))
    read = open_samples(str(tmp_path / "new" / "x.jsonl"), columns)
    for one, other in zip(read, planted, strict=True):
        assert (one.prompt, one.response, one.domain) == (other.prompt, other.response, "law")
        assert one.labels["corruption"] == other.labels["corruption"]
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="cannot be written"):
        write_samples(tmp_path / "file" / "x.jsonl", planted)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["file", "new", "x.jsonl"]
