"""Laws of the plug-in table."""

import importlib
import inspect
import math
from importlib.metadata import EntryPoint

import pytest

from fedwinnow.curation.errors import PluginError
from fedwinnow.strategies import interfaces, registry
from fedwinnow.strategies.plugin_description import arguments
from fedwinnow.strategies.setting_types import check_types, signature

ROWS = [(kind, name) for kind in registry.KINDS for name in registry.BUILT_IN[kind]]
NEEDED = {
    ("threshold", "fixed"): {"value": 0.5},
    ("threshold", "budget"): {
        "samples": 100.0,
        "utilities": [-0.2, -0.1],
        "half_lives": [2.0, 2.0],
        "scale": 1.0,
        "floor": 0.0,
        "bucket": 10.0,
    },
    ("objective", "proximal"): {"mu": 0.1},
    ("weighting", "mixing_law"): {
        "runs": [
            {"weights": {"a": 1.0 - share, "b": share}, "losses": {"": 1.0 + share}}
            for share in (0.0, 0.3, 0.6, 1.0)
        ]
    },
}
"""Settings without a default."""
PROTOCOLS = {kind: getattr(interfaces, kind.capitalize()) for kind in registry.KINDS}


@pytest.mark.parametrize(("kind", "name"), ROWS)
def test_row_loads_and_satisfies_its_protocol(kind, name):
    """Every built-in is a factory of keyword-only settings whose product fits the Protocol."""
    make = registry.plugin_factory(kind, name)
    kinds = {one.kind for one in inspect.signature(make).parameters.values()}
    assert kinds <= {inspect.Parameter.KEYWORD_ONLY}
    made = registry.build(kind, name, NEEDED.get((kind, name), {}))
    assert isinstance(made, PROTOCOLS[kind])


@pytest.mark.parametrize(("kind", "name"), ROWS)
def test_row_names_its_source_or_says_control(kind, name):
    """The module's head or the factory's docstring holds a link or the word control."""
    make = registry.plugin_factory(kind, name)
    module = importlib.import_module(make.__module__)
    assert make.__doc__
    text = (module.__doc__ or "") + make.__doc__
    assert "https://" in text or "control" in text.lower()


@pytest.mark.parametrize("kind", registry.KINDS)
def test_unknown_name_lists_the_choices(kind):
    """A typo is answered with every name of the kind."""
    with pytest.raises(PluginError) as caught:
        registry.plugin_factory(kind, "no_such_thing")
    for name in registry.plugin_names(kind):
        assert name in str(caught.value)


def test_unknown_setting_lists_the_choices():
    """A setting that the factory does not have is named, and so are those that it has."""
    with pytest.raises(PluginError, match=r"'target_recall'.*'recal'.*recall"):
        registry.build("threshold", "target_recall", {"recal": 0.9})
    with pytest.raises(PluginError, match="it has no settings"):
        registry.build("scorer", "perplexity", {"base": 2})


def test_missing_setting_is_named():
    """A setting without a default must be given."""
    with pytest.raises(PluginError, match=r"'fixed' needs the setting 'value'"):
        registry.build("threshold", "fixed", {})


def test_setting_out_of_range_names_plug_in_and_range():
    """A wrong value is an error of the input, not a crash."""
    with pytest.raises(PluginError, match=r"'keep_fraction'.*1\.5.*\(0, 1\]"):
        registry.build("threshold", "keep_fraction", {"share": 1.5})


def entry(name, value="json:dumps"):
    """An entry point of some installed package."""
    return EntryPoint(name=name, value=value, group="fedwinnow.scorer")


def test_installed_plug_in_is_found_by_name(monkeypatch):
    """An entry point of an installed package stands beside the built-ins."""
    monkeypatch.setattr(registry, "entry_points", lambda **_: [entry("mine")])
    assert "mine" in registry.plugin_names("scorer")
    assert registry.plugin_factory("scorer", "mine").__name__ == "dumps"


@pytest.mark.parametrize(
    "points", [[entry("perplexity")], [entry("mine"), entry("mine", "json:loads")]]
)
def test_name_taken_twice_is_refused(monkeypatch, points):
    """A clash with a built-in or between two packages is an error that names both."""
    monkeypatch.setattr(registry, "entry_points", lambda **_: points)
    with pytest.raises(PluginError, match=r"claimed twice: by .* and by json"):
        registry.plugin_names("scorer")


def test_broken_plug_in_is_named(monkeypatch):
    """A package that cannot be imported is an error that names it."""
    monkeypatch.setattr(
        registry, "entry_points", lambda **_: [entry("mine", "no_such_package:mine")]
    )
    with pytest.raises(PluginError, match=r"'mine'.*no_such_package.*reinstall"):
        registry.plugin_factory("scorer", "mine")


@pytest.mark.parametrize(("kind", "name"), ROWS)
def test_every_setting_of_a_built_in_is_typed(kind, name):
    """Each has an annotation that is checked: an object of no type at all is refused by name."""
    make = registry.plugin_factory(kind, name)
    for key in signature(make).parameters:
        settings = NEEDED.get((kind, name), {}) | {key: object()}
        with pytest.raises(PluginError, match=rf"{kind} '{name}': setting '{key}': expected .*got"):
            registry.build(kind, name, settings)


@pytest.mark.parametrize(("kind", "name"), ROWS)
def test_numbers_that_are_none_are_refused_or_documented(kind, name):
    """A NaN is no number, in any setting; an infinity is refused unless the docstring allows it."""
    make = registry.plugin_factory(kind, name)
    floats = [key for key, one in signature(make).parameters.items() if one.annotation is float]
    said = arguments(inspect.getdoc(make) or "")
    for key in floats:
        for value in (math.nan, math.inf, -math.inf):
            settings = NEEDED.get((kind, name), {}) | {key: value}
            if "inf" in said[key] and not math.isnan(value):
                continue
            with pytest.raises(PluginError, match=rf"'{name}'.*{key}"):
                registry.build(kind, name, settings)


@pytest.mark.parametrize(
    ("kind", "name", "settings", "expected"),
    [
        ("merging", "core_svd", {"rank": 2.5}, "a whole number"),
        ("merging", "core_svd", {"rank": "eight"}, "a whole number"),
        ("merging", "core_svd", {"rank": True}, "a whole number"),
        ("merging", "ties", {"density": "half"}, "a number"),
        ("merging", "ties", {"density": True}, "a number"),
        ("merging", "dare", {"seed": 1.5}, "a whole number"),
        ("merging", "linear", {"scale": "big"}, "a number"),
        ("merging", "flower:FedAdam", {"eta": "x"}, "a number"),
        ("merging", "flower:Krum", {"num_malicious_nodes": 0.5}, "a whole number"),
        ("weighting", "samples_kept", {"cap": "two"}, "a number"),
        ("scorer", "calibrated", {"signals": "loss"}, "a list of a text"),
        ("scorer", "calibrated", {"signals": ["loss", 1]}, "a list of a text"),
        ("scorer", "representation", {"contrast": 1}, "true or false"),
    ],
)
def test_setting_of_another_type_is_refused_by_name(kind, name, settings, expected):
    """The error names kind, plug-in, setting, expected type, and what came."""
    ((key, value),) = settings.items()
    with pytest.raises(PluginError) as caught:
        registry.build(kind, name, settings)
    assert str(caught.value) == (
        f"{kind} {name!r}: setting {key!r}: expected {expected}, got {value!r}"
    )


def test_annotations_in_texts_and_unions_are_checked_and_others_left_alone():
    """Texts are evaluated, a whole number is a number, None fits where it is named."""

    def make(*, a: "int | None" = None, b: "float" = 0.0, c=1, d: "tuple[int, str]" = (1, "")):
        return (a, b, c, d)

    for settings in ({"a": None, "b": 2}, {"a": 3, "c": object()}, {"d": [1, "x"]}):
        check_types("merging", "mine", make, settings)
    for settings in ({"a": "x"}, {"b": None}, {"d": [1, 2]}, {"d": [1]}, {"a": 1.0}):
        with pytest.raises(PluginError, match="'mine'"):
            check_types("merging", "mine", make, settings)

    def strange(*, a: "NoSuchName" = 0, b: "list" = ()):  # noqa: F821 - that is the case
        return a, b

    check_types("merging", "mine", strange, {"a": "x", "b": 3})
