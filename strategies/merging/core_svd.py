"""Truncate ΔW* to the best adapter of a fixed rank: SVD through QR and a small core.

With ΔW* = Σ p_i s_i B_i A_i = U Σ Vᵀ (never formed), the previous scale s, and c the root mean
square length of the rows of the previous A, the first r directions become

    A = c V_rᵀ,   B = U_r Σ_r / (s c).

So the scale stays, rows of A keep the length that training is tuned to (the gradient of B grows
with A), and B carries the size of the update, as after ordinary LoRA training.

Reference:
    J. Bai et al., Federated Fine-tuning of Large Language Models under Heterogeneous Tasks and
    Client Resources (FlexLoRA), NeurIPS 2024, section 3, https://arxiv.org/abs/2402.11505
    Differs from the paper: the dense ΔW* is never formed, and singular values go to B.
"""

from collections.abc import Mapping

from fedwinnow.curation.adapters import algebra as maths
from fedwinnow.curation.datatypes import Adapter
from fedwinnow.strategies.interfaces.merging import Merged, Merging
from fedwinnow.strategies.merge_maths import factor_averages


def core_svd(*, rank: int = 0) -> Merging:
    """Merge to the best approximation of rank r; report what it loses.

    Directions that the update does not need are filled with the rows of the previous A that it
    explains least, and B = 0 there: they change nothing and can be trained; a zero update gives the
    previous A with B = 0. Where the previous A has too few rows, seeded random ones are used.
    Report: ``discarded_energy`` (share of ‖ΔW*‖² over all modules that is lost, in [0, 1]),
    ``rank`` (largest of a module) and ``target_norm`` (‖ΔW*‖).

    Args:
        rank: Rank of every merged module, at least 1 and at most what its matrix can have; 0 keeps
            each module's previous rank.

    Raises:
        ValueError: ``rank`` is negative.

    Reference:
        FlexLoRA, NeurIPS 2024, https://arxiv.org/abs/2402.11505
    """
    factor_averages.check_rank(rank)

    def merge(
        adapters: Mapping[str, Adapter], weights: Mapping[str, float], previous: Adapter
    ) -> Merged:
        shares = factor_averages.checked_shares(adapters, weights, previous)
        found = factor_averages.truncate_to_rank(
            previous, rank, lambda module: maths.target(adapters, shares, module)
        )
        report = {
            "discarded_energy": found.discarded_energy,
            "rank": factor_averages.largest_rank(found.adapter),
            "target_norm": found.whole**0.5,
        }
        return Merged(adapter=found.adapter, report=report)

    return merge
