"""Anchors: three disjoint parts by domain, and calibration rows that follow their parents."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedwinnow.client.data.anchors import calibration_rows, split_anchors
from fedwinnow.curation.datatypes import Sample
from fedwinnow.curation.errors import DataError

DOMAINS = ("finance", "law", "medicine")
KINDS = ("swap", "cut", "delete", "substitute", "noise")


def anchors(number, domains=DOMAINS):
    return [
        Sample(
            id=f"{domain}-{i:03}",
            prompt=f"question {i} of {domain}",
            response=" ".join(f"{domain}{i}word{j}" for j in range(12)),
            domain=domain,
        )
        for domain in domains
        for i in range(number)
    ]


def parts(split):
    return [{s.id for s in part} for part in (split.reference, split.calibration, split.holdout)]


@settings(max_examples=40)
@given(
    number=st.integers(8, 30),
    reference=st.floats(0.15, 0.4),
    calibration=st.floats(0.15, 0.4),
    seed=st.integers(0, 2**31),
)
def test_split_is_disjoint_complete_and_stratified(number, reference, calibration, seed):
    """Algebra: each anchor in one part; each domain's shares are met to the nearest sample."""
    given_anchors = anchors(number)
    split = split_anchors(given_anchors, reference=reference, calibration=calibration, seed=seed)
    first, second, third = parts(split)
    assert first | second | third == {one.id for one in given_anchors}
    assert len(first) + len(second) + len(third) == len(given_anchors)
    for domain in DOMAINS:
        assert sum(id_.startswith(domain) for id_ in first) == round(reference * number)
        assert sum(id_.startswith(domain) for id_ in second) == round(calibration * number)


def test_split_ignores_the_order_of_the_file():
    """Law: shuffled anchors, and anchors given twice, split alike, in the same order."""
    plain = anchors(12)
    mixed = [*plain, *plain[:7]]
    mixed = [mixed[i] for i in np.random.default_rng(0).permutation(len(mixed))]
    one = split_anchors(plain, reference=0.25, calibration=0.5, seed=3)
    assert one == split_anchors(mixed, reference=0.25, calibration=0.5, seed=3)


def test_split_follows_its_seed():
    """Law: equal seeds give equal parts, other seeds others."""
    found = {
        seed: parts(split_anchors(anchors(20), reference=0.25, calibration=0.5, seed=seed))
        for seed in (0, 1)
    }
    assert found[0] != found[1]


def test_split_puts_a_content_in_one_part_whatever_its_domains():
    """Edge: a content filed under two domains counts once, in the first of them by name."""
    plain = anchors(12)
    twins = [replace(one, domain="zoology") for one in plain if one.domain == "law"]
    for mixed in ([*plain, *twins], [*twins, *plain]):
        split = split_anchors(mixed, reference=0.25, calibration=0.5, seed=0)
        every = [*split.reference, *split.calibration, *split.holdout]
        assert len({one.id for one in every}) == len(every) == len(plain)
        assert {one.domain for one in every} == set(DOMAINS)


@pytest.mark.parametrize(("number", "part"), [(1, "reference"), (2, "reference"), (3, "hold-out")])
def test_split_names_the_domain_that_is_too_small(number, part):
    """Edge: a domain too small for three parts is named, with the part that would be empty."""
    few = [*anchors(12, ("law",)), *anchors(number, ("tiny",))]
    with pytest.raises(DataError, match=f"domain 'tiny' has {number} anchors and the {part} part"):
        split_anchors(few, reference=0.25, calibration=0.5, seed=0)


def test_split_of_no_anchor_is_an_error():
    """Edge: an empty list is named."""
    with pytest.raises(DataError, match=r"anchors\.path"):
        split_anchors([], reference=0.25, calibration=0.5, seed=0)


@settings(max_examples=25)
@given(copies=st.integers(1, 6), kinds=st.permutations(KINDS), seed=st.integers(0, 2**31))
def test_calibration_rows_are_balanced_over_kinds(copies, kinds, seed):
    """Algebra: one clean row and ``copies`` corruptions of each anchor; kinds differ by one."""
    kinds = kinds[: 1 + seed % len(kinds)]
    given_anchors = anchors(5)
    rows = calibration_rows(given_anchors, corruptions=kinds, copies=copies, seed=seed)
    assert len(rows.samples) == len(rows.kinds) == len(rows.parents) == 15 * (1 + copies)
    assert Counter(rows.parents) == {one.id: 1 + copies for one in given_anchors}
    counts = Counter(rows.kinds)
    assert counts.pop("clean") == 15
    assert max(counts.values()) - min(counts.get(kind, 0) for kind in kinds) <= 1
    by_id = {one.id: one for one in given_anchors}
    for row, kind, parent in zip(rows.samples, rows.kinds, rows.parents, strict=True):
        assert row.prompt == by_id[parent].prompt
        assert row.domain == by_id[parent].domain
        assert (row == by_id[parent]) == (kind == "clean")
        assert row.labels.get("corruption", "clean") == kind
        assert (row.id == parent) == (kind == "clean")


def test_calibration_rows_repeat_with_their_seed():
    """Law: equal seeds, equal rows; other seeds, other corruptions of the same parents."""
    one, same, other = (
        calibration_rows(anchors(5), corruptions=KINDS, copies=4, seed=seed) for seed in (0, 0, 1)
    )
    assert one == same
    assert one.parents == other.parents
    assert one.samples != other.samples


def test_calibration_rows_name_what_cannot_be_made():
    """Edge: an unknown kind, and a kind that these anchors do not allow."""
    with pytest.raises(DataError, match="'blur' is unknown; choose from swap"):
        calibration_rows(anchors(2), corruptions=("blur",), copies=1, seed=0)
    with pytest.raises(DataError, match="needs a response of another domain"):
        calibration_rows(anchors(2, ("law",)), corruptions=("wrong_domain",), copies=1, seed=0)
    assert calibration_rows([], corruptions=KINDS, copies=1, seed=0).samples == ()
