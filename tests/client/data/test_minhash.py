"""MinHash candidates: exact similarity against the definition, signatures against probability."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedwinnow.client.data.minhash import (
    HASHES,
    MISSED,
    Index,
    band_rows,
    number_bands,
    shared_keys,
    shingles,
    sign_texts,
    similarity,
    text_words,
)

sets = st.frozensets(st.integers(0, 30), max_size=12)


@given(sets, sets)
def test_similarity_is_jaccard(one, other):
    """Oracle and algebra: |∩| / |∪| counted one by one; symmetric, in [0, 1], 1 for equals."""
    both = sum(1 for item in one if item in other)
    either = len(one) + len(other) - both
    assert similarity(one, other) == (both / either if either else 1.0)
    assert similarity(one, other) == similarity(other, one)
    assert similarity(one, one) == 1.0


def test_shingles_are_runs_of_five_words():
    """Law: n words give n − 4 runs, at least one; case and punctuation do not count."""
    assert len(shingles("a b c d e f g")) == 3
    assert len(shingles("a b c")) == 1 == len(shingles(""))
    assert shingles("Iron, a metal: hard & old!") == shingles("iron a metal hard old")
    assert shingles("a b c d e f") > shingles("a b c d e")
    assert text_words("Don't — stop 3.5") == ["don", "t", "stop", "3", "5"]


def pair(jaccard, random, size=100):
    """Two sets of numbers of nearly the wanted similarity."""
    both = round(size * 2 * jaccard / (1 + jaccard))
    drawn = random.choice(2**32, 2 * size - both, replace=False)
    return frozenset(drawn[:size].tolist()), frozenset(drawn[size - both :].tolist())


@pytest.mark.parametrize("jaccard", [0.3, 0.6, 0.9])
def test_signatures_agree_as_often_as_texts(jaccard):
    """Oracle: the share of equal MinHash values is the Jaccard similarity, within 4 deviations."""
    random = np.random.default_rng(0)
    agreeing, exact = [], []
    for _ in range(100):
        one, other = pair(jaccard, random)
        known = sign_texts([one, other], 2, 0.9)
        agreeing.append((known.bytes[0] == known.bytes[1]).mean())
        exact.append(similarity(one, other) + (1 - similarity(one, other)) / 256)
    deviation = math.sqrt(jaccard * (1 - jaccard) / (HASHES * 100))
    assert abs(np.mean(agreeing) - np.mean(exact)) < 4 * deviation


@pytest.mark.parametrize("threshold", [0.11, 0.3, 0.5, 0.7, 0.8, 0.9, 0.99, 1.0])
def test_bands_miss_no_pair_at_the_threshold(threshold):
    """Law: the formula's chance to miss is below 1e-6, and no drawn pair at the threshold is."""
    rows = band_rows(threshold)
    assert (1 - threshold**rows) ** (HASHES // rows) <= MISSED
    random = np.random.default_rng(1)
    for _ in range(40):
        one, other = pair(threshold, random)
        known = sign_texts([one, other], 2, threshold)
        index = Index(threshold=threshold)
        index.add(0, number_bands(known.keys[0]))
        assert index.candidates(number_bands(known.keys[1]), known.bytes[1], known) == [0]


def test_unlike_texts_are_no_candidates():
    """Law: of 300 unrelated texts none is put forward for exact comparison."""
    random = np.random.default_rng(2)
    texts = [frozenset(random.choice(2**32, 60).tolist()) for _ in range(300)]
    known = sign_texts(texts, 300, 0.9)
    index = Index(threshold=0.9)
    for place in range(300):
        assert index.candidates(number_bands(known.keys[place]), known.bytes[place], known) == []
        index.add(place, number_bands(known.keys[place]))
    assert not shared_keys(known.keys).any()


def test_signatures_repeat_and_keys_tell_bands_apart():
    """Law: equal texts sign alike wherever they stand; equal keys of two bands stay apart."""
    text, other = shingles("one two three four five six"), shingles("seven")
    known = sign_texts([text, other, text], 3, 0.9)
    assert (known.keys[0] == known.keys[2]).all()
    assert (known.bytes[0] == known.bytes[2]).all()
    assert shared_keys(known.keys)[0].all()
    assert not shared_keys(known.keys)[1].any()
    same = number_bands(np.zeros(4, dtype=np.uint32))
    assert len(set(same.tolist())) == 4


def test_signatures_are_small():
    """Memory: 256 bytes a text at the default threshold, whatever the text."""
    known = sign_texts([frozenset(range(5000))] * 3, 3, 0.9)
    assert (known.bytes.nbytes + known.keys.nbytes) / 3 == 256
    empty = sign_texts([], 0, 0.9)
    assert shared_keys(empty.keys).shape == (0, 32)
