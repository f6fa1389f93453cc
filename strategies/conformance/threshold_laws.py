"""Laws of thresholds, tried on three uneven sites whose clean scores lie above the others."""

import math

import numpy as np

from fedwinnow.curation.datatypes import PublicScores, ScoreSummary, ThresholdDecision
from fedwinnow.curation.errors import CurationError
from fedwinnow.curation.scores.histogram import empty_summary, merge_summaries, summarise
from fedwinnow.curation.scores.histogram_edges import edges_from_public, is_on_grid
from fedwinnow.strategies.conformance.law import Law, Make, raises

ANCHORS, SAMPLES = 60, (500, 120, 40)


def public_scores() -> PublicScores:
    """Return scores of clean and swapped public rows: probabilities around 0.7 and 0.3."""
    draw = np.random.default_rng(0)
    clean = 1 / (1 + np.exp(-draw.normal(1, 1, size=ANCHORS)))
    bad = 1 / (1 + np.exp(-draw.normal(-1, 1, size=ANCHORS)))
    return PublicScores(
        scores=np.concatenate([clean, bad]),
        kinds=("clean",) * ANCHORS + ("swap",) * ANCHORS,
        domains=("",) * (2 * ANCHORS),
    )


def summaries() -> dict[str, ScoreSummary]:
    """Return summaries of three sites, 60 % of each one's samples clean."""
    draw = np.random.default_rng(1)
    edges = edges_from_public(public_scores().scores, bins=64, probability=True)
    found = {}
    for site, count in zip(("c", "a", "b"), SAMPLES, strict=True):
        centre = np.where(draw.random(count) < 0.6, 1.0, -1.0)  # noqa: PLR2004 - made up
        scores = 1 / (1 + np.exp(-draw.normal(centre, 1)))
        found[site] = summarise(scores, edges, smallest_cell=1)
    return found


def _key(decision: ThresholdDecision) -> tuple[object, ...]:
    per_site = tuple(sorted(decision.per_site.items()))
    return decision.value, per_site, tuple(sorted(decision.evidence.items()))


def _deterministic(make: Make) -> str:
    sites = summaries()
    backwards = dict(reversed(sites.items()))
    first, second = make()(sites, public_scores()), make()(backwards, public_scores())
    return "" if _key(first) == _key(second) else "another order of sites gives another decision"


def _number(make: Make) -> str:
    decision = make()(summaries(), public_scores())
    if math.isnan(decision.value) or decision.value == math.inf:
        return f"the threshold is {decision.value}"
    odd = [name for name, value in decision.evidence.items() if not math.isfinite(value)]
    return f"evidence {odd[0]} is {decision.evidence[odd[0]]}" if odd else ""


def _grid(make: Make) -> str:
    sites = summaries()
    decision = make()(sites, public_scores())
    edges = sites["a"].edges
    off = [v for v in (decision.value, *decision.per_site.values()) if not is_on_grid(v, edges)]
    return f"{off[0]} is no point of the grid; make it by decide_threshold" if off else ""


def _sites(make: Make) -> str:
    strangers = set(make()(summaries(), public_scores()).per_site) - set(summaries())
    return f"it speaks of unknown sites: {', '.join(sorted(strangers))}" if strangers else ""


def _summed(make: Make) -> str:
    apart = make()(summaries(), public_scores())
    together = make()({"": merge_summaries(summaries().values())}, public_scores())
    same = apart.value == together.value and not together.per_site
    return "" if same else f"{apart.value} from the sites, {together.value} from their sum"


def _nothing(make: Make) -> str:
    edges = summaries()["a"].edges
    hollow = {"a": empty_summary(edges), "b": empty_summary(edges)}
    try:
        decision = make()(hollow, public_scores())
    except CurationError:
        return ""
    return "" if not math.isnan(decision.value) else "no sample gives a threshold of NaN"


def _no_site(make: Make) -> str:
    return raises(lambda: make()({}, public_scores()), CurationError)


LAWS = (
    Law(says="the order of the sites changes nothing", check=_deterministic),
    Law(says="the threshold is a number or −inf, and its evidence is finite", check=_number),
    Law(says="the threshold lies on the grid that sites accept", check=_grid),
    Law(says="thresholds of single sites are of sites that sent a summary", check=_sites),
    Law(
        says="no sample at all is an error by name, or a threshold that is a number", check=_nothing
    ),
    Law(says="no site at all is an error by name", check=_no_site, required=False),
    Law(says="the sites' sum gives the same threshold (secure sum)", check=_summed, required=False),
)
