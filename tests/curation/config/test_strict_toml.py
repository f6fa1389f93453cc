"""Laws of strict settings: every key, type and range is checked; errors name key and file."""

import json
import math
import re
import tomllib
from dataclasses import dataclass, field
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import settings as trials
from hypothesis import strategies as st

from fedwinnow.curation.config.site import SiteConfig
from fedwinnow.curation.config.strict_toml import (
    canonical_json,
    load_toml,
    parse,
    require_setting,
    to_toml,
    with_overrides,
)
from fedwinnow.curation.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Part:
    """A table of a list."""

    name: str
    weight: float = 1.0

    def __post_init__(self) -> None:
        require_setting("part.weight", self.weight, self.weight > 0, "above 0")


@dataclass(frozen=True, kw_only=True)
class Inner:
    """A nested table."""

    mode: Literal["slow", "fast"] = "slow"
    sizes: tuple[int, ...] = (1, 2)
    free: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Outer:
    """A whole file."""

    title: str
    count: int = 3
    share: float = 0.5
    on: bool = False
    inner: Inner = field(default_factory=Inner)
    parts: tuple[Part, ...] = ()


def write(folder, text):
    """A TOML file with this text."""
    file = folder / "run.toml"
    file.write_text(text, encoding="utf-8")
    return file


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('title = "x"\ncuont = 4', ["unknown key cuont", "count", "inner", "parts"]),
        ('title = "x"\n[inner]\nmod = 1', ["unknown key inner.mod", "mode", "sizes"]),
        ('title = "x"\n[[parts]]\nname = "a"\nwieght = 1', ["parts.0.wieght", "name, weight"]),
        ("count = 4", ["missing key title"]),
        ('title = "x"\n[[parts]]\nweight = 2', ["missing key parts.0.name"]),
        ("title = 7", ["title: expected a text, got 7"]),
        ('title = "x"\ncount = 1.5', ["count: expected a whole number, got 1.5"]),
        ('title = "x"\ncount = true', ["count: expected a whole number, got True"]),
        ('title = "x"\nshare = "much"', ["share: expected a number, got 'much'"]),
        ('title = "x"\nshare = true', ["share: expected a number"]),
        ('title = "x"\nshare = nan', ["share: expected a number, got nan"]),
        ('title = "x"\non = 1', ["on: expected true or false, got 1"]),
        ('title = "x"\ninner = 3', ["inner: expected a table, got 3"]),
        ('title = "x"\nparts = "a"', ["parts: expected a list, such as ['a'], got 'a'"]),
        ('title = "x"\nparts = ["a"]', ["parts.0: expected a table"]),
        ('title = "x"\n[inner]\nsizes = [1, "b"]', ["inner.sizes.1: expected a whole number"]),
        ('title = "x"\n[inner]\nmode = "wild"', ["inner.mode: expected one of 'slow', 'fast'"]),
        ('title = "x"\n[inner]\nfree = [1]', ["inner.free: expected a table"]),
        ('title = "x"\n[[parts]]\nname = "a"\nweight = 0', ["part.weight = 0.0", "above 0"]),
        ('title = "x"\n[inner.free]\nday = 2020-01-01', ["inner.free.day: expected a text"]),
        ('title = "x"\n[inner.free]\ndeep = [{x = nan}]', ["inner.free.deep.0.x: expected"]),
        ("title = ", ["not valid TOML", "run.toml"]),
    ],
)
def test_settings_errors_name_the_key_what_is_allowed_and_the_file(tmp_path, text, said):
    """Whatever is wrong in a file: one ConfigError with file, key, and what is allowed."""
    file = write(tmp_path, text)
    with pytest.raises(ConfigError) as caught:
        load_toml(file, Outer)
    for part in [str(file), *said]:
        assert part in str(caught.value)


def test_settings_of_a_missing_file_name_it(tmp_path):
    """A path that cannot be read is a ConfigError with the path."""
    for path in (tmp_path / "none.toml", tmp_path):
        with pytest.raises(ConfigError, match=re.escape(str(path))):
            load_toml(path, Outer)


def test_settings_of_bytes_that_are_no_text_name_the_file(tmp_path):
    """A file that is not UTF-8 is a ConfigError, as any that is no TOML."""
    file = tmp_path / "run.toml"
    file.write_bytes(b'title = "\xff\xfe"')
    with pytest.raises(ConfigError, match=re.escape(str(file))):
        load_toml(file, Outer)


def test_settings_take_a_whole_number_for_a_float():
    """1 is as good as 1.0 where a float is meant, and stays a float."""
    found = parse({"title": "x", "share": 1}, Outer)
    assert found.share == 1.0
    assert isinstance(found.share, float)


@pytest.mark.parametrize(
    ("override", "key", "value"),
    [
        ("title=two words", "title", "two words"),
        ("title=bare", "title", "bare"),
        ('title="7"', "title", "7"),
        ("title=a=b", "title", "a=b"),
        ("title=", "title", ""),
        ("count=-4", "count", -4),
        ("share=1e-3", "share", 1e-3),
        ("on=true", "on", True),
        ("inner.mode=fast", "inner.mode", "fast"),
        ("inner.sizes=[4, 5]", "inner.sizes", (4, 5)),
        ("inner.free.deep.er=1", "inner.free", {"deep": {"er": 1}}),
        ("parts.0.name=b", "parts.0.name", "b"),
        ("parts.0.weight=2", "parts.0.weight", 2.0),
        (" inner.mode =fast", "inner.mode", "fast"),
    ],
)
def test_settings_override_wins_over_the_file(tmp_path, override, key, value):
    """``section.key=value`` reaches nested tables and lists; bare words are texts."""
    file = write(tmp_path, 'title = "x"\n[[parts]]\nname = "a"')
    node = load_toml(file, Outer, [override])
    for part in key.split("."):
        node = node[int(part)] if part.isdigit() else getattr(node, part)
    assert node == value
    assert type(node) is type(value)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("title", "expected section.key=value"),
        ("=3", "expected section.key=value"),
        ("nope=3", "unknown key nope"),
        ("inner.nope=3", "unknown key inner.nope"),
        ("title.deep=3", "'title' names no key|not a section|names no key"),
        ("parts.1.name=b", "'1' is not a section"),
        ("parts.x.name=b", "'x' is not a section"),
        ("parts.0=b", "names no key"),
        ('title=".*\\.x"', "is no text of TOML.*single quotes"),
        ("count=many", "count: expected a whole number, got 'many'"),
    ],
)
def test_settings_wrong_override_is_an_error(tmp_path, override, said):
    """An override that names nothing, or has no value, is refused with its words and the file."""
    file = write(tmp_path, 'title = "x"\n[[parts]]\nname = "a"')
    with pytest.raises(ConfigError, match=said) as caught:
        load_toml(file, Outer, [override])
    assert str(file) in str(caught.value)


def test_settings_overrides_leave_the_given_tree_alone():
    """Overriding copies: the tree that was given does not change."""
    tree = {"title": "x", "parts": [{"name": "a"}]}
    before = json.dumps(tree)
    with_overrides(tree, ["parts.0.name=b", "inner.mode=fast"])
    assert json.dumps(tree) == before


_texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
_scalars = st.one_of(
    _texts, st.integers(-(2**53), 2**53), st.floats(allow_nan=False), st.booleans()
)
_nested = st.recursive(
    _scalars,
    lambda x: st.lists(x, max_size=2) | st.dictionaries(_texts, x, min_size=1, max_size=2),
    max_leaves=4,
)
_free = st.dictionaries(_texts, _nested, max_size=3)


@trials(max_examples=150, deadline=None)
@given(
    title=_texts,
    count=st.integers(-(2**53), 2**53),
    share=st.floats(allow_nan=False),
    free=_free,
    parts=st.lists(st.tuples(_texts, st.floats(min_value=1e-300)), max_size=3),
)
def test_settings_toml_round_trip(title, count, share, free, parts):
    """Parse ∘ tomllib ∘ to_toml is the identity, for any texts, numbers and free settings."""
    node = Outer(
        title=title,
        count=count,
        share=share,
        inner=Inner(free=free),
        parts=tuple(Part(name=name, weight=weight) for name, weight in parts),
    )
    back = parse(tomllib.loads(to_toml(node)), Outer)
    assert back == node
    assert canonical_json(back) == canonical_json(node)


def test_settings_toml_carries_comments():
    """A comment stands in the line above its key and changes nothing."""
    node = Outer(title="x", parts=(Part(name="a"),))
    text = to_toml(node, {"count": "How many.", "parts.name": "Who."})
    assert "# How many.\ncount = 3" in text
    assert '# Who.\nname = "a"' in text
    assert parse(tomllib.loads(text), Outer) == node


def test_settings_canonical_is_equal_for_equal_settings():
    """Equal settings have equal text whatever the order of free keys; different ones differ."""
    one = Outer(title="x", inner=Inner(free={"a": 1, "b": [2]}))
    other = Outer(title="x", inner=Inner(free={"b": [2], "a": 1}))
    assert canonical_json(one) == canonical_json(other)
    assert canonical_json(one) != canonical_json(Outer(title="x"))
    assert parse(json.loads(canonical_json(one)), Outer) == one


def test_settings_check_says_key_value_and_range():
    """A range error names the key, the value that came, and the range."""
    with pytest.raises(ConfigError, match=r"a\.b = 3 is out of range; allowed: at least 4"):
        require_setting("a.b", 3, holds=False, allowed="at least 4")
    require_setting("a.b", math.inf, holds=True, allowed="anything")


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """A file with a part that has a default."""

    part: Part = field(default_factory=lambda: Part(name="plain", weight=2.0))


def test_settings_of_a_default_need_no_name():
    """A table without its required keys means the default's; what it may leave out is not taken."""
    assert parse({"part": {"weight": 3.0}}, Chosen).part == Part(name="plain", weight=3.0)
    assert parse({"part": {}}, Chosen).part == Part(name="plain", weight=1.0)
    assert parse({"part": {"name": "other"}}, Chosen).part == Part(name="other", weight=1.0)
    with pytest.raises(ConfigError, match=r"part\.wieght"):
        parse({"part": {"wieght": 3.0}}, Chosen)


def test_settings_old_key_is_an_error_that_names_the_new():
    """A key that was renamed is refused with its new name, in any section."""
    tree = {"site": {"name": "a", "data": "d"}, "policy": {"allow_unsealed_adapters": True}}
    said = "policy.allow_unsealed_adapters is now called policy.allow_individual_updates"
    with pytest.raises(ConfigError, match=said):
        parse(tree, SiteConfig)
