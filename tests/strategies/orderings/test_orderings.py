"""Laws of orderings: permutations, seeds, ties, folds, buckets, hints."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from fedwinnow.curation.datatypes import Sample
from fedwinnow.curation.errors import NonFiniteError
from fedwinnow.strategies.orderings.by_score import by_score
from fedwinnow.strategies.orderings.decomposition import bucket_of, decomposition
from fedwinnow.strategies.orderings.easy_to_hard import easy_to_hard
from fedwinnow.strategies.orderings.folding import folding
from fedwinnow.strategies.orderings.shuffled import shuffled

SCORES = arrays(np.float64, st.integers(0, 30), elements=st.floats(-5, 5).map(round))
CHANCE = (shuffled(), easy_to_hard())
"""Orderings that shuffle later passes anew."""
PROMPTS = ("1 + 2", "4 * (1 + 2)", "true and not false", "who?", "7 - 1 - 1 - 1 - 1")


def prompts(*texts):
    """Samples with these prompts."""
    return tuple(Sample(id=str(i), prompt=t, response="r") for i, t in enumerate(texts))


def some(count):
    """So many samples, of five difficulties."""
    return prompts(*(PROMPTS[i % len(PROMPTS)] for i in range(count)))


@settings(deadline=None)  # five rules an example
@given(scores=SCORES, seed=st.integers(0, 2**62), number=st.integers(1, 40))
def test_orderings_are_permutations(scores, seed, number):
    """Every order holds every position once, of no sample and of one too."""
    rules = (
        *CHANCE,
        by_score(),
        by_score(descending=False),
        folding(folds=number),
        decomposition(buckets=number),
    )
    for rule in rules:
        found = rule(scores, seed, some(len(scores))).indices
        assert sorted(found.tolist()) == list(range(len(scores)))


@given(scores=SCORES, seed=st.integers(0, 2**62))
def test_by_score_sorts_with_ties_in_data_order(scores, seed):
    """Descending or ascending; equal scores keep their positions, whatever the seed."""
    down = by_score()(scores, seed, ()).indices
    up = by_score(descending=False)(scores, 0, ()).indices
    pairs_down = [(-scores[i], i) for i in down]
    pairs_up = [(scores[i], i) for i in up]
    assert pairs_down == sorted(pairs_down)
    assert pairs_up == sorted(pairs_up)


@pytest.mark.parametrize(
    ("rule", "hint", "best_last"),
    [
        (by_score(), "cosine", False),
        (by_score(descending=False), "constant", True),
        (folding(), "constant", True),
        (decomposition(), "constant", True),
        (CHANCE[0], None, False),
        (CHANCE[1], "cosine", False),
    ],
)
def test_orderings_name_the_schedule_that_suits_them(rule, hint, best_last):
    """What puts its best last hints a constant rate, whatever the number; chance hints none."""
    for count in (0, 1, 7):
        order = rule(np.arange(float(count)), 3, some(count))
        assert (order.schedule_hint, order.best_last) == (hint, best_last)
        assert order.keep_order == (rule not in CHANCE)


@pytest.mark.parametrize("rule", [by_score(), by_score(descending=False), folding()])
def test_orderings_by_score_refuse_nan(rule):
    """A NaN has no place in an order and is named; infinities have one."""
    with pytest.raises(NonFiniteError, match="1 NaN among 2"):
        rule(np.array([1.0, np.nan]), 0, some(2))
    found = rule(np.array([-np.inf, 0.0, np.inf]), 0, some(3)).indices
    assert sorted(found.tolist()) == [0, 1, 2]


def test_shuffled_depends_on_the_seed_only():
    """The same seed gives the same order whatever the scores; another seed another one."""
    one, other = np.arange(50.0), np.zeros(50)
    first = shuffled()(one, 1, ()).indices.tolist()
    assert first == shuffled()(other, 1, ()).indices.tolist()
    assert first != shuffled()(one, 2, ()).indices.tolist()


def test_folding_takes_every_third_of_the_ascending():
    """Oracle by hand: the sorted samples from 0 in steps of L, then from 1, and so on."""
    scores = np.array([0.6, 0.0, 0.5, 0.1, 0.4, 0.2, 0.3])
    found = scores[folding(folds=3)(scores, 0, ()).indices]
    assert found.tolist() == [0.0, 0.3, 0.6, 0.1, 0.4, 0.2, 0.5]


@given(scores=SCORES, folds=st.integers(1, 40))
def test_folding_is_so_many_ascending_sweeps(scores, folds):
    """Each fold ascends and they differ in length by one at most; L = 1 and L ≥ n only sort."""
    found = folding(folds=folds)(scores, 0, ()).indices
    plain = by_score(descending=False)(scores, 0, ()).indices
    if folds == 1 or folds >= len(scores):
        assert found.tolist() == plain.tolist()
    lengths = [len(plain[fold::folds]) for fold in range(folds)]
    assert max(lengths) - min(lengths) <= 1
    begin = 0
    for length in lengths:
        sweep = scores[found[begin : begin + length]].tolist()
        assert sweep == sorted(sweep)
        begin += length


def test_decomposition_goes_from_flat_to_nested_and_ends_with_prose():
    """By operators and depth; what holds no expression comes after the hardest."""
    samples = prompts("((1 + 2) * 3 - 4) / 5", "who are you?", "1 + 2", "(1 + 2) * 3", "5")
    found = decomposition(buckets=3)(np.zeros(5), 1, samples).indices.tolist()
    assert found[:3] == [2, 3, 0]
    assert sorted(found[3:]) == [1, 4]


def test_decomposition_weighs_steps_against_depth():
    """α₁ alone counts operators, α₂ alone their depth: the two may order differently."""
    samples = prompts("(1 + 2) * (3 + 4)", "1 + (2 * (3 + 4)) - 0", "((1 + 2) * 3) / 4")
    # operators 3, 4, 3; depth 2, 4, 3
    by_steps = decomposition(alpha1=1.0, alpha2=0.0, buckets=3)(np.zeros(3), 0, samples)
    by_depth = decomposition(alpha1=0.0, alpha2=1.0, buckets=3)(np.zeros(3), 0, samples)
    assert by_steps.indices[-1] == 1
    assert by_depth.indices.tolist() == [0, 2, 1]


@given(
    difficulty=arrays(np.float64, st.integers(0, 40), elements=st.integers(0, 9).map(float)),
    buckets=st.integers(1, 12),
    unknown=st.integers(0, 5),
)
def test_buckets_follow_difficulty_and_keep_ties_together(difficulty, buckets, unknown):
    """Harder is no earlier bucket, equal is the same one, the unknown come after all others."""
    found = bucket_of(np.concatenate([difficulty, np.full(unknown, np.inf)]), buckets)
    known = found[: len(difficulty)]
    order = np.argsort(difficulty, kind="stable")
    assert (np.diff(known[order]) >= 0).all()
    for value in set(difficulty.tolist()):
        assert len(set(known[difficulty == value].tolist())) == 1
    assert (known < buckets).all()
    assert (found[len(difficulty) :] == buckets).all()
    if len(set(difficulty.tolist())) == len(difficulty) and len(difficulty) > 0:
        sizes = np.bincount(known, minlength=buckets)
        assert sizes.max() - sizes.min() <= 1


def test_decomposition_shuffles_within_a_bucket_by_the_seed():
    """Equal difficulty: the seed decides, and the same seed decides alike."""
    samples = prompts(*["1 + 2"] * 20)
    one, same, other = (decomposition()(np.zeros(20), seed, samples) for seed in (1, 1, 2))
    assert one.indices.tolist() == same.indices.tolist()
    assert one.indices.tolist() != other.indices.tolist()


@pytest.mark.parametrize(
    "make",
    [
        lambda: folding(folds=0),
        lambda: decomposition(alpha1=-1.0),
        lambda: decomposition(alpha2=float("nan")),
        lambda: decomposition(alpha1=0.0, alpha2=0.0),
        lambda: decomposition(buckets=0),
        lambda: easy_to_hard(stages=0),
    ],
)
def test_orderings_refuse_settings_out_of_range(make):
    """A setting that means nothing is refused with what is allowed."""
    with pytest.raises(ValueError, match="allowed: "):
        make()
