"""Select the samples that a site trains on, and say why each other one is dropped.

A sample is kept if its score is at least the threshold: ties are kept, and −inf keeps whatever can
be measured. Keeping none is a result, not an error. The study's other arms are here too.
"""

from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Bool, Int8

from fedwinnow.curation.datatypes import Scores, Selection, Status
from fedwinnow.curation.errors import NonFiniteError

QUEUED = "for a person to decide"
"""Reason of a sample that passes the threshold and on which its reviewers disagree."""
_REASONS = {
    Status.NO_TARGET: "no target token",
    Status.NON_FINITE: "not finite",
    Status.REFUSED: "refused by the chat template",
}
_BLOCK = 4096
Statuses = Int8[np.ndarray, " samples"]


def select_above(
    ids: tuple[str, ...],
    scores: Scores,
    status: Statuses,
    threshold: float,
    *,
    queued: Bool[np.ndarray, " samples"] | None = None,
) -> Selection:
    """Keep each sample with a score of at least the threshold that is not queued for a person.

    Args:
        ids: Every sample of the silo, in data order.
        scores: NaN where a sample has none: it is dropped.
        status: Why a sample has or lacks signals.
        threshold: −inf keeps every sample with a score.
        queued: Samples that a person decides about if they pass; None for none.

    Raises:
        NonFiniteError: the threshold is NaN.
    """
    if np.isnan(threshold):
        message = "threshold: expected a number, −inf or inf, got NaN; repair the threshold's rule"
        raise NonFiniteError(message)
    asked = np.zeros(len(ids), dtype=bool) if queued is None else queued
    reasons = tuple(_why(ids, scores, status, asked, threshold))
    return Selection(ids=ids, kept=tuple(not reason for reason in reasons), reasons=reasons)


def _why(
    ids: tuple[str, ...],
    scores: Scores,
    status: Statuses,
    asked: Bool[np.ndarray, " samples"],
    threshold: float,
) -> Iterator[str]:
    """Yield why each sample is dropped, "" where it is kept; by blocks, to hold little memory."""
    columns = (ids, scores, status, asked)
    for start in range(0, max(map(len, columns)), _BLOCK):
        block = slice(start, start + _BLOCK)
        numbers = (scores[block].tolist(), status[block].tolist(), asked[block].tolist())
        for _, score, state, ask in zip(ids[block], *numbers, strict=True):
            reason = _REASONS.get(Status(state), "")
            if not reason and np.isnan(score):
                reason = "no score"
            elif not reason and score < threshold:
                reason = f"score {score:.6g} is below the threshold {threshold:.6g}"
            elif not reason and ask:
                reason = QUEUED
            yield reason


def keep_all(ids: tuple[str, ...], status: Statuses) -> Selection:
    """Keep everything that can be trained on: the rule that any selection must beat."""
    return _chosen(ids, status, status == Status.OK, "")


def random_like(selection: Selection, status: Statuses, *, seed: int) -> Selection:
    """Draw as many samples at random as a selection keeps: the same count, no judgement."""
    places = np.flatnonzero(status == Status.OK)
    number = min(selection.count, len(places))
    drawn = np.random.default_rng(seed).permutation(places)[:number]
    mask = np.zeros(len(selection.ids), dtype=bool)
    mask[drawn] = True
    return _chosen(selection.ids, status, mask, "not drawn")


def oracle(ids: tuple[str, ...], truth: Sequence[str], status: Statuses) -> Selection:
    """Keep the samples that are clean by planted truth, as a perfect scorer would."""
    clean = np.array([kind == "clean" for kind in truth], dtype=bool)
    return _chosen(ids, status, clean & (status == Status.OK), "planted as corrupted")


def _chosen(ids: tuple[str, ...], status: Statuses, mask: np.ndarray, reason: str) -> Selection:
    reasons = [
        "" if keep else _REASONS.get(Status(state), reason)
        for keep, state in zip(mask.tolist(), status.tolist(), strict=True)
    ]
    return Selection(ids=ids, kept=tuple(bool(keep) for keep in mask), reasons=tuple(reasons))
