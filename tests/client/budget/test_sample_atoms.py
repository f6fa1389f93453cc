"""No sum or difference of any number of released data sets is of few samples."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedwinnow.client.budget.sample_atoms import SampleAtoms

UNIVERSE = 14


def admitted(sets, least):
    """The data sets, in order, that the rule lets be released."""
    atoms, released = SampleAtoms.empty(), []
    for number, members in enumerate(sets):
        known = atoms.with_dataset(str(number), np.array(sorted(members), dtype=np.uint64))
        part = known.smallest_part(str(number), released)
        if part is None or part >= least:
            released.append(str(number))
        atoms = known  # a set that is refused is remembered, and constrains nothing
    return atoms, [sets[int(name)] for name in released]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.sets(st.integers(0, UNIVERSE - 1), min_size=1), min_size=2, max_size=6),
    st.integers(2, 4),
)
def test_no_combination_of_admitted_data_sets_is_of_few_samples(sets, least):
    """Algebra: every signed combination, by brute force, holds none or ``least`` samples or more.

    So does each of its values: what two combinations share cannot be told apart either.
    """
    _, released = admitted(sets, least)
    indicator = np.array([[x in one for x in range(UNIVERSE)] for one in released], dtype=int)
    for signs in itertools.product((-1, 0, 1), repeat=len(released)):
        total = np.array(signs) @ indicator
        for value in set(total[total != 0]):
            assert (total == value).sum() >= least


@settings(max_examples=40, deadline=None)
@given(st.lists(st.sets(st.integers(0, UNIVERSE - 1), min_size=1), max_size=6), st.data())
def test_atoms_are_what_every_data_set_holds_or_lacks_together(sets, data):
    """Oracle: atoms by signature; counts of releases by a loop over samples and data sets."""
    atoms = SampleAtoms.empty()
    for number, members in enumerate(sets):
        atoms = atoms.with_dataset(str(number), np.array([*members], dtype=np.uint64))
    known = sorted(set().union(*sets))
    assert atoms.hashes.tolist() == known
    signature = {x: tuple(x in one for one in sets) for x in known}
    assert len(atoms.members) == len(set(signature.values())) == len(atoms.sizes)
    for x, atom in zip(known, atoms.atoms, strict=True):
        assert tuple(atoms.members[atom]) == signature[x]
    number = {str(i): data.draw(st.integers(0, 3)) for i in range(len(sets))} | {"lost": 1}
    spent = atoms.spent(number)
    for x, atom in zip(known, atoms.atoms, strict=True):
        assert spent[atom] == 1 + sum(number[str(i)] for i, one in enumerate(sets) if x in one)


def test_four_releases_that_combine_to_one_sample_end_at_the_fourth():
    """Edge: every pair differs by 50 or more, and D3 − D1 − D2 + D0 is one sample."""
    base, one, two = range(200), range(200, 250), range(250, 300)
    sets = [{*base}, {*base, *one}, {*base, *two}, {*base, *one, *two, 999}]
    assert min(len(a ^ b) for a, b in itertools.combinations(sets, 2)) >= 50
    assert admitted(sets, 50)[1] == sets[:3]
    assert admitted([*sets[:3], {*base, *one, *two}], 50)[1] == [*sets[:3], {*base, *one, *two}]


def test_atoms_of_an_unknown_data_set_are_an_error():
    """Edge: a name that was never added."""
    with pytest.raises(KeyError):
        SampleAtoms.empty().held("nobody")
