"""A scorer: samples whose loss is like that of the clean anchors, neither hard nor too easy.

Score of sample b:  s_b = −|ℓ_b − m| / d, with ℓ_b its mean token loss under the untrained adapter,
m the median and d the mean absolute deviation from it over the clean PUBLIC anchors, in nats.

Reference:
    M. Marion et al., When Less is More: Investigating Data Pruning for Pretraining LLMs at Scale,
    2023, section 3, https://arxiv.org/abs/2309.04564 (keeping the middle of the perplexities)
    Differs from the paper: the middle is that of public anchors, not of the data to prune.
"""

from dataclasses import dataclass

import numpy as np

from fedwinnow.curation.datatypes import Fitted, PublicRows, Scores, Status, Trajectory
from fedwinnow.strategies.interfaces.formula_scorer import clean_rows, column, forecast_auroc


@dataclass(frozen=True, slots=True, kw_only=True)
class TypicalLoss:
    """The scorer; see the module."""

    narrowest: float
    columns: frozenset[str] = frozenset({"loss"})  # only what is named here is measured
    unit: str = "deviations"

    def fit(self, public: PublicRows) -> Fitted:
        """Median and spread of the clean anchors' losses: the same at every site."""
        clean = clean_rows(public, 0, "typical_loss")
        losses = column(public.trajectory[0], "loss")[clean]
        middle = np.median(losses)
        spread = max(self.narrowest, float(np.abs(losses - middle).mean()))
        parameters = {"middle": np.array([middle]), "spread": np.array([spread])}
        scores = self._scores(public.trajectory, parameters)
        return Fitted(
            schema="typical_loss/1",
            parameters=parameters,
            public_scores=scores,
            forecast=forecast_auroc(scores, public.kinds),
        )

    def score(self, trajectory: Trajectory, fitted: Fitted) -> Scores:
        """NaN for a row without signals at any checkpoint, as every scorer gives."""
        return self._scores(trajectory, fitted.parameters)

    def _scores(self, trajectory, parameters):
        usable = np.logical_and.reduce([table.status == Status.OK for table in trajectory])
        away = np.abs(column(trajectory[0], "loss") - parameters["middle"])
        return np.where(usable, -away / parameters["spread"], np.nan)


def typical_loss(*, narrowest: float = 0.01) -> TypicalLoss:
    """Make the scorer.

    Args:
        narrowest: Smallest spread to divide by, in nats, above 0: anchors that are all alike.

    Raises:
        ValueError: ``narrowest`` is not above 0.
    """
    if not narrowest > 0:
        message = f"narrowest = {narrowest} is out of range; allowed: above 0 nats"
        raise ValueError(message)
    return TypicalLoss(narrowest=narrowest)
