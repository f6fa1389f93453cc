"""Weigh sites by what their updates do: more to those that lower the loss of the public anchors.

With a_i = −⟨∇L, θ_i − θ⟩ the first-order drop of the anchors' loss, ā the mean of |a_i| over sites,
and p_i the weights of the round before (at first those of ``samples_kept``):

    p_i ← (1 − ε) p_i exp(η · clip(a_i / ā, −5, 5)) / Z + ε / n,      then at most ``cap`` each.

So weights are multiplied from round to round, and no site is ever silenced for good. One
site, or updates that all lead nowhere (ā = 0), keep the weights as they are.

Reference:
    S. Fan, M. Pagliardini, M. Jaggi, DoGE: Domain Reweighting with Generalization Estimation,
    ICML 2024, algorithm 1, https://arxiv.org/abs/2310.15393
    Differs from the paper: the pseudo-gradient of a site is its update; alignments are divided by
    their mean size instead of the gradient norm, and negative ones count.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from fedwinnow.curation.errors import NonFiniteError
from fedwinnow.strategies.interfaces.weighting import Weighting
from fedwinnow.strategies.weighting.samples_kept import capped, samples_kept, trained_sites

_MOST = 5.0
"""Largest |a_i| / ā that counts, as in the paper's clipping."""


@dataclass(frozen=True, slots=True)
class _Alignment:
    rate: float
    floor: float
    cap: float
    plain: Weighting

    def __call__(self, counts: Mapping[str, int]) -> Mapping[str, float]:
        return self.plain(counts)

    def align(
        self,
        counts: Mapping[str, int],
        alignments: Mapping[str, float],
        before: Mapping[str, float],
    ) -> Mapping[str, float]:
        sites, start = trained_sites(counts), self.plain(counts)
        wrong = [site for site in sites if not math.isfinite(alignments.get(site, 0.0))]
        if wrong:
            message = (
                f"alignment of site {wrong[0]!r}: expected a number, got {alignments[wrong[0]]}; "
                "lower training.learning_rate or leave the site out"
            )
            raise NonFiniteError(message)
        known = {site: before.get(site, 0.0) or start[site] for site in sites}
        size = math.fsum(abs(alignments.get(site, 0.0)) for site in sites) / len(sites)
        if size > 0:
            known = {
                site: weight
                * math.exp(self.rate * max(-_MOST, min(_MOST, alignments.get(site, 0.0) / size)))
                for site, weight in known.items()
            }
        total = math.fsum(known.values())
        smooth = {
            site: (1 - self.floor) * weight / total + self.floor / len(sites)
            for site, weight in known.items()
        }
        return capped(smooth, self.cap)


def anchor_alignment(*, rate: float = 1.0, floor: float = 0.05, cap: float = 0.5) -> Weighting:
    """Weigh sites by how their updates align with the public anchors' gradient.

    Up to three members send that gradient with their update; the median of what it gives counts.
    Every site must train the run's own rank. A site whose update helps the anchors and hurts
    elsewhere is not told apart from a good one.

    Args:
        rate: η, how fast weights move, at least 0; 0 leaves them those of ``samples_kept``.
        floor: ε, share that is dealt out evenly, in [0, 1].
        cap: Largest share of one site, in (0, 1]; below 1 / sites it means equal shares.

    Raises:
        ValueError: a setting is out of range.

    Reference:
        DoGE, ICML 2024, https://arxiv.org/abs/2310.15393
    """
    if not 0 <= rate < math.inf:
        message = f"rate = {rate} is out of range; allowed: at least 0"
        raise ValueError(message)
    if not 0 <= floor <= 1:
        message = f"floor = {floor} is out of range; allowed: in [0, 1]"
        raise ValueError(message)
    return _Alignment(rate=rate, floor=floor, cap=cap, plain=samples_kept(cap=cap))
