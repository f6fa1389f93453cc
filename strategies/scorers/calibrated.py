"""Score by the probability of being clean, from a model fitted on public anchors (the default).

Anchors are public and clean, and their seeded corruptions are public, too: labelled data at no
cost in privacy. ``strategies/maths/calibration_model.py`` fits, on signals of both
(``strategies/maths/signal_features.py``), a ridge logistic regression averaged with typicality,
which knows no corruption. Every site fits the same model from the same rows.

Score of a sample: p in (0, 1), its probability of being clean if half of all samples are. Scores of
the public rows come from held-out folds. The forecast says, before anything is dropped:

``auroc``, ``auroc_se``, ``auroc_within``   clean against all corruptions; its standard error; and
                                            the mean over domains
``auroc_KIND``, ``auroc_left_out_KIND``     against one kind; and fitted without that kind
``recall``, ``precision``                   of keeping p ≥ 1/2, at equal shares
``inseparable``                             1 where the AUROC is not two standard errors above 1/2:
                                            then every score is 1/2 and every rule keeps all

Reference:
    The idea of labelling by corruption: Natarajan et al., NeurIPS 2013, for noise rates;
    calibration: Platt, 1999. Signals: CLUES, https://arxiv.org/abs/2507.03004, and
    ``strategies/maths/signal_features.py``.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int, Shaped

from fedwinnow.curation.datatypes import Fitted, PublicRows, Scores, Trajectory
from fedwinnow.curation.errors import PluginError
from fedwinnow.curation.scores.ranking_metrics import auroc, auroc_within, standard_error
from fedwinnow.curation.signal_columns import CONTRASTS, LOSSES
from fedwinnow.strategies.maths.calibration_model import (
    Recipe,
    Rows,
    choose_ridge,
    cross_validated_logits,
    fit_logistic,
    fit_model,
    fused_logits,
    sigmoid,
)
from fedwinnow.strategies.maths.signal_features import (
    Features,
    derive_features,
    has_signals,
    nearest_domains,
    take_samples,
)
from fedwinnow.strategies.maths.standardization import folds_of, standardizer_from_arrays

SIGNALS: Mapping[str, tuple[frozenset[str], frozenset[str]]] = {
    "losses": (LOSSES, LOSSES),
    "prompt": (frozenset({"unconditional_loss"}), frozenset({"ira", "ifd"})),
    "contrast": (CONTRASTS, frozenset({"contrast_mean", "contrast_min"})),
    "representation": (frozenset({"representation"}), frozenset({"own", "foreign"})),
    "drop": (frozenset({"loss"}), frozenset({"drop"})),
    "gradients": (
        frozenset({"dot", "norm", "adam_dot", "adam_norm"}),
        frozenset({"cosine", "adam_cosine", "norm", "adam_norm"}),
    ),
}
"""Group of signals → its columns, and its features; the last two need ``run.trajectory``."""
LATER = frozenset({"drop", "gradients"})
"""Groups that are measured after warm-up."""
PAYING = ("losses", "prompt", "contrast")
"""Groups that are worth their measurement (``docs/evidence.md``): the default."""
TYPICAL = ("loss", "loss_sd", "loss_q90", "length", "has_end", "end_loss", "ira")
"""Features of the typicality part."""
_FLAGS = frozenset({"has_end"})
_SCHEMA = "calibrated/1"
_FEWEST = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibrated:
    """Calibrated scorer; see the module."""

    recipe: Recipe
    folds: int
    signals: tuple[str, ...] = PAYING
    unit: str = "probability"

    @property
    def columns(self) -> frozenset[str]:
        """Return the columns of its signals, and those that tell an undeclared domain."""
        chosen = (SIGNALS[name][0] for name in self.signals)
        return frozenset({"loss", "representation"}).union(*chosen)

    def fit(self, public: PublicRows) -> Fitted:
        """Fit on the public rows, whatever their order.

        Raises:
            PluginError: fewer than four anchors, or no corrupted copy, have signals.
        """
        usable = np.flatnonzero(has_signals(public.trajectory))
        usable = np.array(
            sorted(usable, key=lambda i: (public.parents[i], public.kinds[i], i)), dtype=np.int64
        )
        kinds = np.array([public.kinds[i] for i in usable], dtype=object)
        rows = self._rows(public, usable, kinds)
        ridge, scores = choose_ridge(rows, self.recipe)
        gain, offset = fit_logistic(scores[:, None], rows.clean, ridge=1e-5)
        forecast = self._forecast(rows, kinds, scores, ridge)
        apart = gain > 0 and not forecast["inseparable"]
        forecast["inseparable"] = float(not apart)
        final = np.array([gain, offset]) if apart else np.zeros(2)
        chances = sigmoid(final[0] * scores + final[1])
        forecast |= _kept(chances, rows)
        public_scores = np.full(len(public.parents), np.nan)
        public_scores[usable] = chances
        model = fit_model(rows, self.recipe, ridge=ridge)
        return Fitted(
            schema=f"{_SCHEMA}:{','.join(rows.names)}",
            parameters=model | {"gamma": final},
            public_scores=public_scores,
            forecast=forecast,
        )

    def score(self, trajectory: Trajectory, fitted: Fitted) -> Scores:
        """Return the probability of being clean; NaN where a sample has no signals.

        Raises:
            PluginError: the columns differ from those of the fit.
        """
        scores = np.full(len(trajectory[0].ids), np.nan)
        usable = np.flatnonzero(has_signals(trajectory))
        if len(usable) == 0:
            return scores
        kept = take_samples(trajectory, usable)
        domains = nearest_domains(kept[0], standardizer_from_arrays(fitted.parameters).mean)
        found = self._features(kept, domains)
        schema = f"{_SCHEMA}:{','.join(found.names)}"
        if schema != fitted.schema:
            message = (
                f"scorer 'calibrated' was fitted as {fitted.schema!r}, but the samples give "
                f"{schema!r}; measure both with the same columns at the same checkpoints"
            )
            raise PluginError(message)
        value = fused_logits(
            fitted.parameters, found.values, domains, names=found.names, recipe=self.recipe
        )
        gain, offset = fitted.parameters["gamma"]
        scores[usable] = sigmoid(gain * value + offset)
        return scores

    def _rows(
        self,
        public: PublicRows,
        usable: Int[np.ndarray, " rows"],
        kinds: Shaped[np.ndarray, " rows"],
    ) -> Rows:
        clean = kinds == "clean"
        if clean.sum() < _FEWEST or clean.all():
            message = (
                f"scorer 'calibrated' needs at least {_FEWEST} clean anchors and a corrupted copy "
                f"with signals, but {clean.sum()} and {(~clean).sum()} came; "
                "raise anchors.calibration, anchors.copies or the number of anchors"
            )
            raise PluginError(message)
        kept = take_samples(public.trajectory, usable)
        domains = kept[0].domains
        found = self._features(kept, domains)
        parents = [public.parents[i] for i in usable]
        folds = min(self.folds, len(set(parents)))
        return Rows(
            names=found.names,
            values=found.values,
            domains=domains,
            clean=clean.astype(bool),
            folds=np.array(folds_of(parents, domains, folds)),
        )

    def _features(self, trajectory: Trajectory, domains: tuple[str, ...]) -> Features:
        """Return the features of its own signals, whatever was measured for other scorers."""
        if len(trajectory) == 1 and LATER.intersection(self.signals):
            message = (
                "scorer 'calibrated' is to read "
                f"{', '.join(repr(n) for n in self.signals if n in LATER)}, which are measured "
                "after warm-up, but there is one checkpoint; set run.trajectory = 'global', or "
                "take them out of scorer.settings.signals"
            )
            raise PluginError(message)
        chosen = (SIGNALS[name][1] for name in self.signals)
        return derive_features(trajectory, domains).select(frozenset({"loss"}).union(*chosen))

    def _forecast(
        self,
        rows: Rows,
        kinds: Shaped[np.ndarray, " rows"],
        scores: Float[np.ndarray, " rows"],
        ridge: float,
    ) -> dict[str, float]:
        """Return the held-out AUROCs of the public rows."""
        clean = rows.clean
        total = auroc(scores, clean)
        error = standard_error(total, int(clean.sum()), int((~clean).sum()))
        within = auroc_within(scores, clean, rows.domains)
        found = {
            "auroc": total,
            "auroc_se": error,
            "auroc_within": total if within is None else within,
            "ridge": ridge,
            "clean_rows": float(clean.sum()),
            "corrupted_rows": float((~clean).sum()),
            "inseparable": float(total - 2 * error <= 0.5),  # noqa: PLR2004 - chance
        }
        names = sorted(set(kinds) - {"clean"})
        for name in names:
            here = clean | (kinds == name)
            found[f"auroc_{name}"] = auroc(scores[here], clean[here])
            if len(names) > 1:
                unseen = cross_validated_logits(
                    rows, self.recipe, ridge=ridge, without=kinds == name
                )
                found[f"auroc_left_out_{name}"] = auroc(unseen[here], clean[here])
        return found


def calibrated(
    *,
    safeguard: float = 0.5,
    shrinkage: float = 8.0,
    folds: int = 8,
    signals: Sequence[str] = PAYING,
) -> Calibrated:
    """Make the scorer.

    Args:
        safeguard: Weight of typicality beside the discriminative part, in [0, 1]; 0 trusts the
            corruptions that were tried, 1 trusts none.
        shrinkage: Pseudo-anchors that pull a domain's mean and spread to the pool's, above 0.
        folds: Cross-validation folds over anchors, at least 2.
        signals: Groups of signals beside the loss: some of "losses", "prompt", "contrast",
            "representation", and, with run.trajectory = "global", "drop" and "gradients".

    Raises:
        ValueError: a setting is out of range.
    """
    if not 0 <= safeguard <= 1 or not 0 < shrinkage < np.inf or folds < 2:  # noqa: PLR2004 - the documented range
        message = (
            "safeguard in [0, 1], shrinkage above 0 and at least 2 folds are expected, "
            f"got {safeguard}, {shrinkage} and {folds}"
        )
        raise ValueError(message)
    unknown = sorted(set(signals) - set(SIGNALS)) if not isinstance(signals, str) else [signals]
    if unknown or not signals:
        message = f"signals: expected a list of some of {', '.join(SIGNALS)}, got {unknown}"
        raise ValueError(message)
    recipe = Recipe(typical=TYPICAL, only_typical=_FLAGS, safeguard=safeguard, shrinkage=shrinkage)
    chosen = tuple(name for name in SIGNALS if name in signals)
    return Calibrated(recipe=recipe, folds=folds, signals=chosen)


def _kept(chances: Float[np.ndarray, " rows"], rows: Rows) -> dict[str, float]:
    """Return recall and precision of keeping p ≥ 1/2 at equal shares of clean and corrupted."""
    recall = float((chances[rows.clean] >= 0.5).mean())  # noqa: PLR2004 - even odds
    passed = float((chances[~rows.clean] >= 0.5).mean())  # noqa: PLR2004 - even odds
    return {"recall": recall, "precision": recall / (recall + passed) if recall + passed else 1.0}
