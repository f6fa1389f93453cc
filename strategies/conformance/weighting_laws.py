"""Laws of weightings, tried on counts of several sites, with 0 among them."""

import math

from fedwinnow.curation.errors import CurationError, EmptySelectionError
from fedwinnow.strategies.conformance.law import Law, Make, raises

COUNTS = ({"a": 3}, {"b": 700, "a": 20, "c": 0}, {"d": 5, "c": 5, "b": 5, "a": 1})
TOLERANCE = 1e-12


def _sum(make: Make) -> str:
    for counts in COUNTS:
        total = math.fsum(make()(counts).values())
        if not abs(total - 1) <= TOLERANCE:
            return f"weights of {counts} sum to {total}"
    return ""


def _range(make: Make) -> str:
    for counts in COUNTS:
        for site, weight in make()(counts).items():
            if not (math.isfinite(weight) and weight >= 0):
                return f"site {site} of {counts} weighs {weight}"
            if weight > 0 and counts.get(site, 0) <= 0:
                return f"site {site} with no sample of {counts} weighs {weight}"
    return ""


def _order(make: Make) -> str:
    for counts in COUNTS:
        if dict(make()(counts)) != dict(make()(dict(reversed(counts.items())))):
            return f"another order of {counts} gives other weights"
    return ""


def _none(make: Make) -> str:
    return raises(lambda: make()({"a": 0, "b": 0}), EmptySelectionError)


def _negative(make: Make) -> str:
    return raises(lambda: make()({"a": -1, "b": 2}), CurationError)


def _alike(make: Make) -> str:
    weights = make()({"a": 4, "b": 4})
    return "" if weights.get("a") == weights.get("b") else f"equal sites weigh {dict(weights)}"


LAWS = (
    Law(says="weights sum to 1", check=_sum),
    Law(says="a weight is at least 0, and 0 for a site without a sample", check=_range),
    Law(says="the order of the sites changes nothing", check=_order),
    Law(says="no sample at all is EmptySelectionError", check=_none),
    Law(says="a negative count is refused by name", check=_negative, required=False),
    Law(says="equal sites weigh alike", check=_alike, required=False),
)
