"""Laws of orderings, tried on no, one and many samples, with equal scores among them."""

import numpy as np

from fedwinnow.curation.datatypes import Sample, Scores
from fedwinnow.curation.learning_rate import SCHEDULES
from fedwinnow.strategies.conformance.law import Law, Make
from fedwinnow.strategies.interfaces.ordering import Order, StagedOrdering

SIZES = (0, 1, 2, 17)


def samples_of(size: int) -> tuple[tuple[Sample, ...], Scores]:
    """Return samples of two domains and lengths, and scores of which some are equal."""
    draw = np.random.default_rng(size)
    made = tuple(
        Sample(
            id=f"{place:08x}",
            prompt=f"What is {place}?",
            response="It is " + "so " * int(draw.integers(1, 9)),
            domain="ab"[place % 2],
        )
        for place in range(size)
    )
    return made, np.round(draw.normal(size=size), 0)


def _order(make: Make, size: int, seed: int = 7) -> Order:
    samples, scores = samples_of(size)
    order: Order = make()(scores, seed, samples)
    return order


def _permutation(make: Make) -> str:
    for size in SIZES:
        indices = np.asarray(_order(make, size).indices)
        if indices.dtype.kind not in "iu" and size:
            return f"positions of {size} samples are {indices.dtype}, not whole numbers"
        if sorted(indices.tolist()) != list(range(size)):
            return f"{size} samples give the positions {indices.tolist()[:20]}"
    return ""


def _deterministic(make: Make) -> str:
    same = all(
        np.array_equal(_order(make, size).indices, _order(make, size).indices) for size in SIZES
    )
    return "" if same else "the same scores and seed give two orders"


def _untouched(make: Make) -> str:
    samples, scores = samples_of(17)
    before = scores.copy()
    make()(scores, 7, samples)
    return "" if np.array_equal(before, scores) else "scores were changed in place"


def _hint(make: Make) -> str:
    hint = _order(make, 0).schedule_hint
    known = hint is None or hint in SCHEDULES
    return "" if known else f"hints at {hint!r}; schedules are {', '.join(SCHEDULES)}"


def _stages(make: Make) -> str:
    ordering = make()
    if not isinstance(ordering, StagedOrdering):
        return ""
    if ordering.stages < 1 or not ordering.scorer:
        return f"{ordering.stages} stages by scorer {ordering.scorer!r}"
    samples, scores = samples_of(17)
    scores[3] = np.nan
    indices = ordering(scores, 7, samples).indices
    return "" if sorted(indices.tolist()) == list(range(17)) else "a NaN loses a sample of a stage"


LAWS = (
    Law(says="an order is a permutation, also of no sample", check=_permutation),
    Law(says="the same scores and seed give the same order", check=_deterministic),
    Law(says="it changes nothing that it is given", check=_untouched),
    Law(says="its schedule hint is a schedule, known without a sample", check=_hint),
    Law(says="an ordering in stages ranks samples without a score, too", check=_stages),
)
