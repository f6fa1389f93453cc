"""Laws of the laws: every built-in keeps them, and each law finds the rule that breaks it."""

import math
from collections.abc import Mapping
from itertools import combinations

import numpy as np
import pytest
import torch

from fedwinnow.curation.datatypes import Fitted, ThresholdDecision
from fedwinnow.curation.errors import EmptySelectionError
from fedwinnow.strategies.conformance.check import (
    LAWS,
    assert_lawful,
    check_factory,
    check_registered,
)
from fedwinnow.strategies.conformance.merging_laws import before
from fedwinnow.strategies.interfaces.merging import Merged
from fedwinnow.strategies.interfaces.ordering import Order
from fedwinnow.strategies.registry import BUILT_IN, KINDS

SITES = "abcd"
MIXTURES = [
    {
        "weights": {site: (2.0 if site in pair else 1.0) / 6 for site in SITES},
        "losses": {"": 1.0 + 0.1 * place},
    }
    for place, pair in enumerate(combinations(SITES, 2))
]
"""Six mixtures of the laws' sites, as `fedwinnow mixture` would measure them."""
NEEDED: Mapping[str, Mapping[str, object]] = {
    "fixed": {"value": 0.5},
    "budget": {
        "samples": 300.0,
        "utilities": [-0.2, -0.1],
        "half_lives": [2.0, 2.0],
        "scale": 1.0,
        "floor": 0.0,
        "bucket": 100.0,
    },
    "proximal": {"mu": 0.1},
    "mixing_law": {"runs": MIXTURES},
    "calibrated": {"folds": 2},
}
"""Settings without a default, and fewer folds for a fit that takes seconds."""


@pytest.mark.parametrize(("kind", "name"), [(k, n) for k in KINDS for n in BUILT_IN[k]])
def test_built_in_keeps_the_laws_of_its_kind(kind, name):
    """Every required law holds for every built-in plug-in."""
    broken = [
        v for v in check_registered(kind, name, NEEDED.get(name, {})) if v.required and not v.holds
    ]
    assert not broken


class Broken:
    """A scorer that breaks one law at a time."""

    columns = frozenset({"loss"})
    unit = "nats"

    def __init__(self, how: str) -> None:
        """``how`` names the flaw."""
        self.how = how
        if how == "columns":
            self.columns = frozenset({"loss", "mood"})
        if how == "unit":
            self.unit = " "

    def fit(self, public):
        """A mean."""
        values = public.trajectory[0].columns["loss"].astype(np.float64)
        mean = np.array([values.mean()])
        if self.how == "random":
            mean = mean + np.random.default_rng().normal()
        if self.how == "narrow":
            mean = mean.astype(np.float32)
        return Fitted(schema="broken/1", parameters={"mean": mean}, public_scores=-values)

    def score(self, trajectory, fitted):
        """Minus the loss, in many wrong ways."""
        usable = np.logical_and.reduce([table.status == 0 for table in trajectory])
        values = -trajectory[0].columns["loss"].astype(np.float64)
        if self.how == "company":
            values = values - np.nanmean(values)
        if self.how == "touch":
            trajectory[0].columns["loss"][:] = 0
        if self.how == "random":
            values = values + fitted.parameters["mean"]
        return values if self.how == "deaf" else np.where(usable, values, np.nan)


def scorer(*, how: str = "") -> Broken:
    """A control.

    Args:
        how: The flaw, a word.
    """
    return Broken(how)


@pytest.mark.parametrize(
    ("how", "law"),
    [
        ("columns", "it reads columns that can be measured"),
        ("unit", "its unit is a word"),
        ("random", "the same rows give the same fit and the same scores, bit for bit"),
        ("narrow", "what it fits and forecasts is finite, parameters are float64"),
        ("deaf", "a row with signals has a finite score, one without has NaN"),
        ("company", "a sample's score does not depend on other samples"),
        ("touch", "it changes nothing that it is given"),
    ],
)
def test_law_of_scorers_finds_the_flaw(how, law):
    """A scorer with one flaw breaks its law; without a flaw it keeps all."""
    broken = {v.law for v in check_factory("scorer", scorer, {"how": how}) if not v.holds}
    assert law in broken
    assert_lawful("scorer", scorer, strict=True)


def threshold(*, how: str = ""):
    """A control."""

    def rule(summaries, public):  # noqa: ARG001 - the Protocol's shape
        value = {"": -math.inf, "nan": math.nan, "off": 0.123456}.get(how, -math.inf)
        if how == "first":
            value = -math.inf if next(iter(summaries)) == "b" else 0.5
        per_site = {"nobody": 0.5} if how == "stranger" else {}
        return ThresholdDecision(value=value, per_site=per_site)

    return rule


def ordering(*, how: str = ""):
    """A control."""

    def order(scores, seed, samples):  # noqa: ARG001 - the Protocol's shape
        indices = np.arange(len(scores))
        if how == "twice":
            indices = np.zeros(len(scores), dtype=np.int64)
        if how == "random":
            indices = np.random.default_rng().permutation(len(scores))
        if how == "touch":
            scores[:] = 0
        return Order(indices=indices, schedule_hint="wavy" if how == "hint" else None)

    return order


def objective(*, how: str = ""):
    """A control."""

    def lose(losses, parameters, initial):  # noqa: ARG001 - the Protocol's shape
        if how == "vector":
            return losses
        if how == "dead":
            return losses.detach().mean()
        return torch.nanmean(losses) if how == "hidden" else losses.mean()

    return lose


def weighting(*, how: str = ""):
    """A control."""

    def weigh(counts):
        sites = [site for site in counts if counts[site] > 0 or how == "empty"]
        if not sites:
            message = "no site"
            raise EmptySelectionError(message)
        return dict.fromkeys(sites, (2.0 if how == "heavy" else 1.0) / len(sites))

    return weigh


def merging(*, how: str = ""):
    """A control."""

    def merge(adapters, weights, previous):  # noqa: ARG001 - the Protocol's shape
        name = next(iter(adapters)) if how == "first" else min(adapters)
        one = adapters[name]
        if how == "touch":
            one.a["model.layers.0.q_proj"][:] = 1
        return Merged(adapter=before() if how == "deaf" else one)

    return merge


@pytest.mark.parametrize(
    ("kind", "make", "how", "law"),
    [
        ("threshold", threshold, "nan", "the threshold is a number or −inf"),
        ("threshold", threshold, "off", "the threshold lies on the grid"),
        ("threshold", threshold, "first", "the order of the sites changes nothing"),
        ("threshold", threshold, "stranger", "thresholds of single sites"),
        ("ordering", ordering, "twice", "an order is a permutation"),
        ("ordering", ordering, "random", "the same scores and seed give the same order"),
        ("ordering", ordering, "touch", "it changes nothing"),
        ("ordering", ordering, "hint", "its schedule hint is a schedule"),
        ("objective", objective, "vector", "a batch of losses gives one finite number"),
        ("objective", objective, "dead", "its gradient reaches the losses"),
        ("objective", objective, "hidden", "a NaN loss is not hidden"),
        ("weighting", weighting, "heavy", "weights sum to 1"),
        ("weighting", weighting, "empty", "a weight is at least 0"),
        ("merging", merging, "first", "the order of arrival changes nothing"),
        ("merging", merging, "touch", "it changes nothing"),
        ("merging", merging, "", "a NaN in a factor is NonFiniteError"),
        ("merging", merging, "deaf", "one adapter merges to itself"),
    ],
)
def test_law_finds_the_flaw(kind, make, how, law):
    """A plug-in with one flaw breaks the law that names it."""
    broken = [v.law for v in check_factory(kind, make, {"how": how}) if not v.holds]
    assert any(one.startswith(law) for one in broken), broken


def test_assert_lawful_lists_what_is_broken():
    """The author's own test fails with the laws; unusual rules fail only strictly."""
    with pytest.raises(AssertionError, match="an order is a permutation"):
        assert_lawful("ordering", ordering, how="twice")
    assert_lawful("ordering", ordering)
    with pytest.raises(AssertionError, match="explained"):
        assert_lawful("ordering", ordering, strict=True)


def test_laws_are_told_apart_by_their_words():
    """No kind has two laws of one sentence, and each has a required one."""
    for kind, laws in LAWS.items():
        assert len({law.says for law in laws}) == len(laws), kind
        assert any(law.required for law in laws)
