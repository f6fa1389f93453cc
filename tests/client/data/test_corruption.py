"""Corruptions for calibration: seeded, recorded, and never the sample itself."""

import re
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedwinnow.client.data.corruption import KINDS, corrupt
from fedwinnow.curation.datatypes import Sample
from fedwinnow.curation.errors import DataError


def sample(number, response, domain="law"):
    return Sample(
        id=f"{number:032x}",
        prompt=f"prompt {number}",
        response=response,
        domain=domain,
        labels={"licence": "CC0"},
    )


def words(number, of="w"):
    return " ".join(f"{of}{i}x" for i in range(number))


POOL = [
    *(sample(i, words(20 + i, of=f"law{i}")) for i in range(4)),
    *(sample(10 + i, words(20 + i, of=f"art{i}"), "art") for i in range(4)),
]

response_text = st.lists(
    st.text(st.characters(codec="utf-8"), min_size=1, max_size=6), min_size=2, max_size=20
).map(" ".join)


@settings(max_examples=150)
@given(response=response_text, kind=st.sampled_from(sorted(KINDS)), seed=st.integers(0, 2**40))
def test_corrupt_always_changes_the_words(response, kind, seed):
    """Algebra: whatever the text, another response in words and another id, or a named error."""
    clean = sample(99, response)
    least = {"swap": 0, "wrong_domain": 0, "noise": 1, "substitute": 1}.get(kind, 2)
    if len(response.split()) < least:
        with pytest.raises(DataError, match=f"{kind} cannot be made"):
            corrupt(clean, kind, pool=[*POOL, clean], seed=seed)
        return
    bad = corrupt(clean, kind, pool=[*POOL, clean], seed=seed)
    assert bad.response.split() not in ([], response.split())
    assert bad.id != clean.id
    assert len(bad.id) == 32
    assert bad.labels == {"licence": "CC0", "corruption": kind}
    assert (bad.prompt, bad.domain, bad.history) == (clean.prompt, clean.domain, clean.history)
    assert clean.labels == {"licence": "CC0"}


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_corrupt_repeats_with_its_seed(kind):
    """Law: equal arguments, equal copy; over ten seeds there are several copies."""
    copies = [corrupt(POOL[0], kind, pool=POOL, seed=seed) for seed in range(10)]
    assert copies == [corrupt(POOL[0], kind, pool=POOL, seed=seed) for seed in range(10)]
    assert len({copy.id for copy in copies}) > 1


def test_swap_and_wrong_domain_take_answers_of_their_domains():
    """Law: swap answers with another response of the domain, wrong_domain with one of another."""
    for seed in range(20):
        swapped = corrupt(POOL[0], "swap", pool=POOL, seed=seed).response
        assert swapped in {one.response for one in POOL[1:4]}
        foreign = corrupt(POOL[0], "wrong_domain", pool=POOL, seed=seed).response
        assert foreign in {one.response for one in POOL[4:]}


def test_cut_and_delete_keep_words_in_order():
    """Law: a cut keeps the first 20–60 % of words, a deletion loses 25–50 %, both in order."""
    clean = sample(1, words(100))
    for seed in range(20):
        cut = corrupt(clean, "cut", pool=POOL, seed=seed).response.split()
        assert cut == clean.response.split()[: len(cut)]
        assert 20 <= len(cut) <= 60
        left = corrupt(clean, "delete", pool=POOL, seed=seed).response.split()
        assert left == sorted(left, key=lambda word: int(word[1:-1]))
        assert 50 <= len(left) <= 75


def test_substitute_and_noise_change_their_share_of_words():
    """Law: 25–50 % of words become the pool's, 25–45 % are garbled by a letter; others stand."""
    clean = sample(1, words(100))
    strange = {word for one in POOL for word in one.response.split()}
    for seed in range(20):
        for kind, most in (("substitute", 50), ("noise", 45)):
            found = corrupt(clean, kind, pool=[*POOL, clean], seed=seed).response.split()
            assert len(found) == 100
            pairs = zip(clean.response.split(), found, strict=True)
            other = {old: new for old, new in pairs if new != old}
            assert 20 <= len(other) <= most
            assert (set(other.values()) <= strange) == (kind == "substitute")
            if kind == "noise":
                assert all(abs(len(new) - len(old)) <= 1 for old, new in other.items())


@pytest.mark.parametrize("kind", ["delete", "substitute", "noise", "cut"])
def test_white_space_tells_no_copy_from_its_parent(kind):
    """Law: breaks after the words that stay are kept, and so are those at either end."""
    clean = sample(1, "\n" + "\n\n".join(words(40).split()) + "  \n")
    bad = corrupt(clean, kind, pool=POOL, seed=0).response
    assert set(re.findall(r"\s+", bad.strip())) == {"\n\n"}
    assert (bad[: -len(bad.lstrip())], bad[len(bad.rstrip()) :]) == ("\n", "  \n")


@pytest.mark.parametrize(
    ("kind", "clean", "pool", "needs"),
    [
        ("cut", sample(1, "word"), POOL, "two words"),
        ("delete", sample(1, "word"), POOL, "two words"),
        ("swap", POOL[0], POOL[:1], "another response to another prompt of the same domain"),
        ("swap", POOL[0], [POOL[0], *POOL[4:]], "of the same domain"),
        ("swap", POOL[0], [replace(POOL[0], prompt="other")], "another response"),
        ("swap", POOL[0], [replace(POOL[1], prompt=POOL[0].prompt)], "another prompt"),
        ("wrong_domain", POOL[0], POOL[:4], "a response of another domain"),
        ("substitute", POOL[0], POOL[:1], "other words"),
        ("noise", sample(1, ""), POOL, "letters"),
        ("cut", sample(1, " \n"), POOL, "two words"),
        ("substitute", sample(1, ""), POOL, "a response"),
    ],
)
def test_corrupt_names_what_it_needs(kind, clean, pool, needs):
    """Edge: one-word responses, single-sample pools and single-domain sets are named cases."""
    with pytest.raises(DataError, match=needs) as caught:
        corrupt(clean, kind, pool=pool, seed=0)
    assert f"leave {kind} out of anchors.corruptions" in str(caught.value)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("kind", ["substitute", "noise"])
def test_one_word_can_be_changed(kind):
    """Edge: a response of one word, even of one letter, is substituted or garbled."""
    for text in ("word", "a", "aa"):
        assert corrupt(sample(1, text), kind, pool=POOL, seed=0).response != text


def test_unknown_kind_lists_the_kinds():
    """Edge: the choices in the message are those of the table."""
    with pytest.raises(DataError) as caught:
        corrupt(POOL[0], "blur", pool=POOL, seed=0)
    assert all(kind in str(caught.value) for kind in KINDS)
