"""Laws of reading JSON trees into dataclasses."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import pytest

from fedwinnow.curation.config.strict_toml import to_plain
from fedwinnow.curation.config.typed_json import parse_tree
from fedwinnow.curation.errors import DataError


@dataclass(frozen=True, slots=True, kw_only=True)
class Leaf:
    """A part."""

    share: float
    held: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Tree:
    """A whole."""

    name: str
    leaf: Leaf | None
    leaves: tuple[Leaf, ...]
    named: Mapping[str, tuple[int, ...]] = field(default_factory=dict)


WHOLE = {
    "name": "n",
    "leaf": {"share": 0.5, "held": True},
    "leaves": [{"share": 1.0, "held": False}],
    "named": {"a": [1, 2]},
}


def test_tree_is_read_as_plain_wrote_it():
    """``to_plain`` and back, for nested parts, lists, maps and null."""
    for tree in (WHOLE, WHOLE | {"leaf": None, "leaves": [], "named": {}}):
        assert to_plain(parse_tree(tree, Tree)) == tree


def test_tree_numbers_may_be_whole_or_words():
    """A whole number is a number; what JSON cannot hold stands as a word."""
    assert parse_tree({"share": 1}, Leaf) == Leaf(share=1.0)
    assert isinstance(parse_tree({"share": 1}, Leaf).share, float)
    assert parse_tree({"share": "-inf"}, Leaf).share == float("-inf")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"name": 3}, "name: expected a text, got 3"),
        ({"leaf": {"share": True}}, "leaf.share: expected a number, got True"),
        ({"leaf": {"share": 0.5, "held": 1}}, "leaf.held: expected true or false, got 1"),
        ({"leaves": [{"held": True}]}, "leaves.0.share: expected this key, got none"),
        ({"leaves": "x"}, "leaves: expected a list, got 'x'"),
        ({"named": {"a": [1.5]}}, "named.a.0: expected a whole number, got 1.5"),
        ({"named": None}, "named: expected an object, got None"),
    ],
)
def test_tree_error_names_the_key_what_was_expected_and_what_came(change, said):
    """The dotted path leads to the value."""
    with pytest.raises(DataError) as error:
        parse_tree(WHOLE | change, Tree)
    assert str(error.value) == said


def test_tree_error_shows_no_more_than_a_line():
    """A long value is cut; a tree that is no object is named by its place."""
    with pytest.raises(DataError) as error:
        parse_tree({"share": "x" * 500}, Leaf, "leaf")
    assert len(str(error.value)) < 120
    with pytest.raises(DataError, match="the file: expected an object, got"):
        parse_tree([], Leaf)
