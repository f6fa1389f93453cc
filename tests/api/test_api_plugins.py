"""Laws of plug-ins from Python: made by name, listed, and held to their laws."""

import pytest

import fedwinnow as fw
from fedwinnow.strategies.interfaces.scorer import Scorer
from fedwinnow.strategies.registry import plugin_names
from fedwinnow.strategies.thresholds.keep_fraction import keep_fraction


def test_build_makes_a_plugin_from_its_settings():
    """Settings are keywords; an unknown kind, name or setting is refused by name."""
    assert isinstance(fw.build("scorer", "perplexity"), Scorer)
    for kind, name, settings, words in (
        ("scorers", "less", {}, "kind 'scorers' is unknown; choose one of scorer,"),
        ("scorer", "mess", {}, "'mess' is unknown"),
        ("threshold", "keep_fraction", {"part": 1.0}, "has no setting 'part'"),
        ("threshold", "keep_fraction", {"share": 2.0}, "share"),
    ):
        with pytest.raises(fw.errors.PluginError, match=words):
            fw.build(kind, name, **settings)


def test_plugins_lists_a_kind_or_all():
    """Names of the registry with their settings; an unknown kind is refused."""
    found = fw.plugins("threshold")
    assert tuple(one.name for one in found) == plugin_names("threshold")
    assert {one.kind for one in found} == {"threshold"}
    (share,) = next(one for one in found if one.name == "keep_fraction").settings
    assert (share.name, share.default) == ("share", 0.6)
    with pytest.raises(fw.errors.PluginError, match="kind 'thresholds' is unknown"):
        fw.plugins("thresholds")


def test_assert_lawful_is_the_conformance_kit():
    """A built-in plug-in passes the laws of its kind."""
    fw.assert_lawful("threshold", keep_fraction, share=0.5)
