"""Merge by rules that bend the mean on purpose: task vectors, their sum, the cut, the error.

A task vector is what site i added in this round, τ_i = s_i B_i A_i − s B A with the previous
adapter (A, B, s) that it started from; where B = 0, as in a first round, τ_i = s_i B_i A_i. A rule
makes T of all τ_i, and the merge is the best adapter of the rank for s B A + T. So a rule that
shrinks, drops or grows acts on each update once, not again in every later round.

Source: definition of task vectors, G. Ilharco et al., Editing Models with Task Arithmetic, ICLR
2023, https://arxiv.org/abs/2212.04089, with the round's start in the place of the base.
"""

import math
from collections.abc import Callable, Mapping
from typing import TypeAlias

from fedwinnow.curation.adapters import algebra as maths
from fedwinnow.curation.datatypes import Adapter
from fedwinnow.strategies.interfaces.merging import Merged
from fedwinnow.strategies.merge_maths import factor_averages

Updates: TypeAlias = Mapping[str, maths.Product]
"""Site → its whole s_i B_i A_i."""
Combine: TypeAlias = Callable[
    [str, Mapping[str, float], Updates, maths.Product | None], maths.Product
]
"""From module, shares, updates and the previous product (None if it is 0) to T."""


def check_scale(scale: float) -> None:
    """Refuse a factor that is not a number above 0.

    Raises:
        ValueError: ``scale`` is not finite or not above 0.
    """
    if not (math.isfinite(scale) and scale > 0):
        message = f"scale = {scale} is out of range; allowed: a number above 0 (1: the mean)"
        raise ValueError(message)


def check_density(density: float) -> None:
    """Refuse a share that is not in (0, 1].

    Raises:
        ValueError: ``density`` is not in (0, 1].
    """
    if not 0 < density <= 1:
        message = f"density = {density} is out of range; allowed: (0, 1], the share that is kept"
        raise ValueError(message)


def merge_task_vectors(
    adapters: Mapping[str, Adapter],
    weights: Mapping[str, float],
    previous: Adapter,
    *,
    rank: int,
    bend: Combine,
) -> Merged:
    """Merge to s B A + T of rank ``rank``, T by ``bend``; report the distance from the plain mean.

    Report: ``discarded_energy`` (share of ‖s B A + T‖² that the cut loses, in [0, 1]), ``rank``,
    ``merged_norm`` (‖s B A + T‖), ``target_norm`` (‖ΔW*‖) and, where ΔW* is not 0,
    ``relative_error`` (distance of the merged adapter from ΔW* over ‖ΔW*‖).
    """
    shares = factor_averages.checked_shares(adapters, weights, previous)

    def goal(module: str) -> maths.Product:
        updates = {site: maths.delta(adapters[site], module) for site in shares}
        before = previous_product(previous, module)
        bowed = bend(module, shares, updates, before)
        return bowed if before is None else maths.sum_products([before, bowed])

    found = factor_averages.truncate_to_rank(previous, rank, goal)
    error = target = 0.0
    for module in previous.modules:
        mean = maths.target(adapters, shares, module)
        target += maths.norm(mean) ** 2
        off = maths.sum_products([mean, maths.delta(found.adapter, module, -1.0)])
        error += maths.norm(off) ** 2
    report = {
        "discarded_energy": found.discarded_energy,
        "rank": factor_averages.largest_rank(found.adapter),
        "merged_norm": found.whole**0.5,
        "target_norm": target**0.5,
    }
    if target > 0:
        report["relative_error"] = (error / target) ** 0.5
    return Merged(adapter=found.adapter, report=report)


def previous_product(previous: Adapter, module: str) -> maths.Product | None:
    """Return the previous product of a module; None where its B is 0."""
    return maths.delta(previous, module) if bool(previous.b[module].any()) else None
