"""Which samples a site trains on, and why each other one is dropped."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int8

from fedwinnow.curation.nouns import Scores, Selection, Status

_REASONS = {
    Status.NO_TARGET: "no response token is left",
    Status.NON_FINITE: "the model gives no finite number",
}
Statuses = Int8[np.ndarray, " samples"]


def select(ids: tuple[str, ...], scores: Scores, status: Statuses, threshold: float) -> Selection:
    """Keep a sample if its score is at least the threshold; ties are kept, NaN is not."""
    kept, reasons = [], []
    for score, state in zip(scores.tolist(), status.tolist(), strict=True):
        reason = _REASONS.get(Status(state), "")
        if not reason and np.isnan(score):
            reason = "no score"
        elif not reason and score < threshold:
            reason = f"score {score:.6g} is below the threshold {threshold:.6g}"
        kept.append(not reason)
        reasons.append(reason)
    return Selection(ids=ids, kept=tuple(kept), reasons=tuple(reasons))


def keep_all(ids: tuple[str, ...], status: Statuses) -> Selection:
    """Everything that can be trained on: the rule that any selection must beat."""
    return _chosen(ids, status, status == Status.OK, "")


def random_like(selection: Selection, status: Statuses, *, seed: int) -> Selection:
    """As many samples as a selection keeps, drawn at random: the same count, no judgement."""
    places = np.flatnonzero(status == Status.OK)
    number = min(selection.count, len(places))
    drawn = np.random.default_rng(seed).permutation(places)[:number]
    mask = np.zeros(len(selection.ids), dtype=bool)
    mask[drawn] = True
    return _chosen(selection.ids, status, mask, "not drawn")


def oracle(ids: tuple[str, ...], truth: Sequence[str], status: Statuses) -> Selection:
    """The samples that are clean by planted truth: what a perfect scorer would keep."""
    clean = np.array([kind == "clean" for kind in truth], dtype=bool)
    return _chosen(ids, status, clean & (status == Status.OK), "planted as corrupted")


def _chosen(ids: tuple[str, ...], status: Statuses, mask: np.ndarray, reason: str) -> Selection:
    reasons = [
        "" if keep else _REASONS.get(Status(state), reason)
        for keep, state in zip(mask.tolist(), status.tolist(), strict=True)
    ]
    return Selection(ids=ids, kept=tuple(bool(keep) for keep in mask), reasons=tuple(reasons))
