"""Average B for a shared A, then turn the product into right and left singular vectors: exact.

With weights p_i, scales s_i, the previous scale s and c the root mean square length of the rows of
the previous A:

    Σ p_i s_i B_i A = U Σ Vᵀ,   A ← c Vᵀ,   B ← U Σ / (s c).

The rank stays (the product has at most that of A), and A follows the directions that the updates
take; its orthogonal rows bound the gradient of B, which helps where that is clipped and noised.

Reference:
    S. Lee et al., FedSVD: Adaptive Orthogonalization for Private Federated Learning with LoRA,
    NeurIPS 2025, https://arxiv.org/abs/2505.12805
    Differs from the paper: rows of A have length c instead of 1, so that the learning rate keeps
    its meaning; directions without an update keep rows of the previous A.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from fedwinnow.curation.adapters import algebra as maths
from fedwinnow.curation.datatypes import Adapter
from fedwinnow.strategies.interfaces.merging import FactorMerging, Merged
from fedwinnow.strategies.merge_maths import factor_averages


def fedsvd() -> FactorMerging:
    """Average B exactly and refactor the product; sites train B only, in every round.

    A site whose A is not bit for bit the one that it was sent is refused by name, so ranks are
    equal too; scales may differ. Report: ``rank``, ``target_norm`` (‖ΔW*‖), ``discarded_energy`` 0.

    Reference:
        FedSVD, NeurIPS 2025, https://arxiv.org/abs/2505.12805
    """
    return _FedSVD()


@dataclass(frozen=True, slots=True)
class _FedSVD:
    def trains(self, number: int) -> frozenset[Literal["a", "b"]]:  # noqa: ARG002 - B in every round
        return frozenset({"b"})

    def __call__(
        self, adapters: Mapping[str, Adapter], weights: Mapping[str, float], previous: Adapter
    ) -> Merged:
        shares = factor_averages.checked_shares(adapters, weights, previous)
        factor_averages.check_shared_a(adapters, shares, previous, "fedsvd")

        def product(module: str) -> maths.Product:
            parts = [maths.delta(adapters[site], module, share) for site, share in shares.items()]
            left = sum((part.left for part in parts[1:]), start=parts[0].left)
            return maths.Product(left=left, right=parts[0].right)

        found = factor_averages.truncate_to_rank(previous, 0, product)
        report = factor_averages.exact_report(found.adapter, found.whole)
        return Merged(adapter=found.adapter, report=report)
