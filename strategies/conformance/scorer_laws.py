"""Laws of scorers, tried on a made-up trajectory of three checkpoints.

Twenty anchors of two domains, each clean, swapped and cut: swapped and cut rows have larger losses
and gradients that point elsewhere. The numbers mean nothing beyond that.
"""

import functools
from collections.abc import Iterable
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from fedwinnow.curation.datatypes import Fitted, PublicRows, SignalTable, Status, Trajectory
from fedwinnow.curation.signal_columns import GRADIENTS, KNOWN, ONCE, OTHER_MODELS, REVIEWS, WIDE
from fedwinnow.strategies.conformance.law import Law, Make, same_arrays

PARENTS, DOMAINS, CHECKPOINTS, SIZE = 20, ("law", "medicine"), 3, 24
KINDS = ("clean", "swap", "cut")
TOLERANCE = 1e-6
"""Largest difference of scores between honest sites (design of the protocol)."""
_SHARES = frozenset({"student_entropy", "teacher_confidence"})
_COSINES = frozenset({"representation", "representation_corrupted"})


def made_up(columns: Iterable[str], *, seed: int = 0) -> Trajectory:
    """Return tables with each of these columns where it is measured; all rows have signals."""
    draw = np.random.default_rng(seed)
    rows = PARENTS * len(KINDS)
    bad = np.tile([0.0, 1.0, 1.0], PARENTS)
    references = draw.normal(size=(len(DOMAINS), SIZE))
    own = references[np.arange(rows) // len(KINDS) % 2] * (1 - bad)[:, None]
    gradients = own + draw.normal(size=(rows, SIZE))
    base = draw.uniform(1.0, 2.0, size=rows) + bad
    tables = []
    for checkpoint in range(CHECKPOINTS):
        found = {
            name: _column(name, draw, base, bad, checkpoint, gradients, references)
            for name in sorted(columns)
            if _measured(name, checkpoint)
        }
        tables.append(
            SignalTable(
                ids=tuple(f"sample-{row}" for row in range(rows)),
                domains=tuple(DOMAINS[row // len(KINDS) % 2] for row in range(rows)),
                checkpoint=checkpoint,
                status=np.full(rows, Status.OK, dtype=np.int8),
                columns=found,
                references=DOMAINS,
                reference_gram=references @ references.T,
                learning_rate=1e-3 * checkpoint,
            )
        )
    return tuple(tables)


def _measured(name: str, checkpoint: int) -> bool:
    if name in ONCE:
        return checkpoint == 0
    if name in REVIEWS:
        return checkpoint == CHECKPOINTS - 1
    return checkpoint > 0 if name in GRADIENTS else True


def _column(
    name: str,
    draw: np.random.Generator,
    base: Float[np.ndarray, " rows"],
    bad: Float[np.ndarray, " rows"],
    checkpoint: int,
    gradients: Float[np.ndarray, "rows size"],
    references: Float[np.ndarray, "domains size"],
) -> Float[np.ndarray, "rows ..."]:
    rows = len(base)
    noise = draw.normal(0, 0.05, size=rows)
    values = base - 0.2 * checkpoint * (1 - bad) + noise
    if name in _COSINES:
        values = np.tanh(draw.normal(size=(rows, len(DOMAINS))) + (0.5 - bad)[:, None])
    elif name in WIDE:
        values = gradients @ references.T * (1 + 0.1 * checkpoint)
    elif name in ("norm", "adam_norm"):
        values = np.linalg.norm(gradients, axis=1) + np.abs(noise)
    elif name == "length":
        values = draw.integers(3, 60, size=rows).astype(np.float64)
    elif name == "has_end":
        values = (draw.random(rows) < 0.9 - 0.5 * bad).astype(np.float64)
    elif name in _SHARES:
        values = draw.random(rows)
    elif name.endswith(("_sd", "_spread")):
        values = np.abs(noise) + 0.3 * base
    found: Float[np.ndarray, "rows ..."] = np.asarray(values, dtype=np.float32)
    return found


def public_rows(trajectory: Trajectory) -> PublicRows:
    """Return the whole trajectory as public rows."""
    rows = range(PARENTS * len(KINDS))
    return PublicRows(
        trajectory=trajectory,
        kinds=tuple(KINDS[row % len(KINDS)] for row in rows),
        parents=tuple(f"anchor-{row // len(KINDS)}" for row in rows),
    )


def taken(trajectory: Trajectory, rows: Int[np.ndarray, " rows"]) -> Trajectory:
    """Return some rows of a trajectory, in this order."""
    return tuple(
        SignalTable(
            ids=tuple(table.ids[row] for row in rows),
            domains=tuple(table.domains[row] for row in rows),
            checkpoint=table.checkpoint,
            status=table.status[rows],
            columns={name: values[rows] for name, values in table.columns.items()},
            references=table.references,
            reference_gram=table.reference_gram,
            learning_rate=table.learning_rate,
        )
        for table in trajectory
    )


def _spoilt(trajectory: Trajectory, row: int) -> Trajectory:
    """Return the trajectory with one row without signals at the last checkpoint."""
    last = taken(trajectory[-1:], np.arange(len(trajectory[0].ids)))[0]
    last.status[row] = Status.NON_FINITE
    for values in last.columns.values():
        values[row] = np.nan
    return (*trajectory[:-1], last)


def _columns(make: Make) -> str:
    unknown = sorted(set(make().columns) - KNOWN - OTHER_MODELS)
    return f"no such column: {', '.join(unknown)}" if unknown else ""


def _unit(make: Make) -> str:
    unit = make().unit
    return "" if isinstance(unit, str) and unit.strip() else f"unit is {unit!r}"


@functools.lru_cache(maxsize=1)
def _fit(make: Make) -> tuple[Any, Fitted, Trajectory]:
    """Return a scorer, its fit and the rows fitted to; cached, as a fit may take seconds."""
    scorer = make()
    trajectory = made_up(scorer.columns)
    return scorer, scorer.fit(public_rows(trajectory)), trajectory


def _deterministic(make: Make) -> str:
    one, first, _ = _fit(make)
    other = make()
    second = other.fit(public_rows(made_up(other.columns)))
    same = same_arrays(first.parameters, second.parameters) and first.schema == second.schema
    if not same or first.public_scores.tobytes() != second.public_scores.tobytes():
        return "two fits to the same rows differ"
    private = made_up(one.columns, seed=1)
    scores = one.score(private, first), other.score(private, second)
    return "" if scores[0].tobytes() == scores[1].tobytes() else "two scores of one row differ"


def _fitted(make: Make) -> str:
    _, fitted, _ = _fit(make)
    for name, array in fitted.parameters.items():
        if array.dtype != np.float64 or not np.isfinite(array).all():
            return f"parameter {name} is {array.dtype}, or holds a NaN or an infinity"
    odd = [name for name, value in fitted.forecast.items() if not np.isfinite(value)]
    if odd:
        return f"forecast {odd[0]} is {fitted.forecast[odd[0]]}"
    scores = fitted.public_scores
    if scores.shape != (PARENTS * len(KINDS),):
        return f"{scores.shape} public scores for {PARENTS * len(KINDS)} rows"
    return "" if np.isfinite(scores).all() else "a public row with signals has no score"


def _missing(make: Make) -> str:
    scorer, fitted, _ = _fit(make)
    private = _spoilt(made_up(scorer.columns, seed=1), 5)
    scores = scorer.score(private, fitted)
    if scores.shape != (len(private[0].ids),):
        return f"{scores.shape} scores for {len(private[0].ids)} rows"
    wrong = np.flatnonzero(np.isnan(scores) != (private[-1].status != Status.OK))
    if len(wrong):
        return f"row {wrong[0]} with status {private[-1].status[wrong[0]]}: {scores[wrong[0]]}"
    return "" if not np.isinf(scores).any() else "a score is infinite"


def _alone(make: Make) -> str:
    scorer, fitted, _ = _fit(make)
    private = made_up(scorer.columns, seed=1)
    whole = scorer.score(private, fitted)
    rows = np.random.default_rng(2).permutation(len(whole))[: len(whole) // 3]
    apart = np.abs(scorer.score(taken(private, rows), fitted) - whole[rows]).max()
    return "" if apart <= TOLERANCE else f"among other rows a score is {apart:.3g} away"


def _untouched(make: Make) -> str:
    scorer, fitted, public = _fit(make)
    private = made_up(scorer.columns, seed=1)
    scorer.score(private, fitted)
    anew = made_up(scorer.columns), made_up(scorer.columns, seed=1)
    for given, before in zip((public, private), anew, strict=True):
        same = (same_arrays(b.columns, g.columns) for b, g in zip(before, given, strict=True))
        if not all(same):
            return "a column was changed in place"
    return ""


LAWS = (
    Law(says="it reads columns that can be measured", check=_columns),
    Law(says="its unit is a word", check=_unit),
    Law(
        says="the same rows give the same fit and the same scores, bit for bit",
        check=_deterministic,
    ),
    Law(says="what it fits and forecasts is finite, parameters are float64", check=_fitted),
    Law(says="a row with signals has a finite score, one without has NaN", check=_missing),
    Law(says="a sample's score does not depend on other samples", check=_alone),
    Law(says="it changes nothing that it is given", check=_untouched),
)
