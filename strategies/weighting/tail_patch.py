"""Weigh sites by their patch's effect on each category of public anchors (bundles of FLAMe).

A site's adapter of a round is a patch: a few steps on its own samples from a partially trained
adapter. The other sites measure the loss of each public anchor before and after. With gain g and
standard error e over the anchors of a category, z = g / e gives a rating:

    z > 2: +2    1 < z ≤ 2: +1    |z| ≤ 1, or −2 ≤ z < −1: 0    z < −2: −1

A site belongs to the bundle *general* where its ratings sum to at least 5/6 of the number of
categories, to a category's *specific* bundle where its rating there is +2, else to *others*. Each
bundle has a weight, shared evenly by its members; memberships add up. No site weighs above ``cap``.

Reference:
    T. Vu et al., Foundational Autoraters: Taming Large Language Models for Better Automatic
    Evaluation (FLAMe), EMNLP 2024, section 4, https://arxiv.org/abs/2407.10817
    Differs from the paper: ratings are z-scores over anchors instead of judgements by eye, weights
    are set anew in every round, and the two best tasks of weak categories get no extra weight.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from fedwinnow.strategies.interfaces.weighting import Effect, Weighting
from fedwinnow.strategies.weighting.samples_kept import capped, samples_kept, trained_sites

_STRONG, _SLIGHT, _WORSE = 2.0, 1.0, -2.0
"""z beyond which an effect is strong, slight, or harmful."""
_GENERAL = 5 / 6
"""Sum of ratings over categories from which a site helps in general: 5 of 6 in the paper."""


@dataclass(frozen=True, slots=True)
class _TailPatch:
    general: float
    specific: float
    others: float
    cap: float
    plain: Weighting

    def __call__(self, counts: Mapping[str, int]) -> Mapping[str, float]:
        return self.plain(counts)

    def rate(
        self, counts: Mapping[str, int], effects: Mapping[str, Mapping[str, Effect]]
    ) -> Mapping[str, float]:
        sites = trained_sites(counts)
        ratings = {site: {c: rating(e) for c, e in effects.get(site, {}).items()} for site in sites}
        bundles: list[tuple[float, list[str]]] = [
            (self.general, [s for s in sites if _general(ratings[s])])
        ]
        for category in sorted({name for one in ratings.values() for name in one}):
            best = [s for s in sites if ratings[s].get(category, 0) == int(_STRONG)]
            bundles.append((self.specific, best))
        members = {site for _, bundle in bundles for site in bundle}
        bundles.append((self.others, [site for site in sites if site not in members]))
        raw = {
            site: math.fsum(weight / len(some) for weight, some in bundles if site in some)
            for site in sites
        }
        total = math.fsum(raw.values())
        if total == 0:  # bundles of weight 0 hold everybody
            return capped(dict.fromkeys(sites, 1.0), self.cap)
        return capped({site: weight / total for site, weight in raw.items()}, self.cap)


def rating(effect: Effect) -> int:
    """Rate +2 strongly better, +1 slightly, 0 unchanged, −1 worse; by sign where error is 0."""
    if effect.error == 0:
        return 2 if effect.gain > 0 else -1 if effect.gain < 0 else 0
    z = effect.gain / effect.error
    if z > _STRONG:
        return 2
    if z > _SLIGHT:
        return 1
    return -1 if z < _WORSE else 0


def _general(ratings: Mapping[str, int]) -> bool:
    return bool(ratings) and sum(ratings.values()) >= _GENERAL * len(ratings)


def tail_patch(
    *, general: float = 100.0, specific: float = 30.0, others: float = 3.0, cap: float = 0.5
) -> Weighting:
    """Weigh sites by the bundles that their effect on each category of anchors puts them into.

    Needs ``guards.anchor_margin`` above 0, so that the other sites measure; their median counts.
    The weight of a bundle is shared by its members.

    Args:
        general: Weight of the sites that help in general, at least 0.
        specific: Weight of the sites that strongly help one category, each category, at least 0.
        others: Weight of the rest, at least 0.
        cap: Largest share of one site, in (0, 1]; below 1 / sites it means equal shares.

    Raises:
        ValueError: a setting is out of range.

    Reference:
        FLAMe, EMNLP 2024, https://arxiv.org/abs/2407.10817
    """
    for name, value in (("general", general), ("specific", specific), ("others", others)):
        if not (math.isfinite(value) and value >= 0):
            message = f"{name} = {value} is out of range; allowed: at least 0"
            raise ValueError(message)
    return _TailPatch(
        general=general, specific=specific, others=others, cap=cap, plain=samples_kept(cap=cap)
    )
