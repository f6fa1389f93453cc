"""Freeze A, average B: exact, with half the bytes, as every site shares the same A.

With weights p_i, scales s_i and the previous scale s, and A as it was sent:

    B = Σ p_i (s_i / s) B_i,   so that  s B A = Σ p_i s_i B_i A.

Only a weighted sum of B is needed, so it also works where the server sees nothing but sums; noise
added to B enters the product linearly.

Reference:
    Y. Sun et al., Improving LoRA in Privacy-preserving Federated Learning (FFA-LoRA), ICLR 2024,
    https://arxiv.org/abs/2403.12313
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from fedwinnow.curation.datatypes import Adapter
from fedwinnow.strategies.interfaces.merging import FactorMerging, Merged
from fedwinnow.strategies.merge_maths import factor_averages


def freeze_a() -> FactorMerging:
    """Average B exactly; sites train B only, in every round.

    A site whose A is not bit for bit the one that it was sent is refused by name, so ranks are
    equal too; scales may differ. Report: ``rank``, ``target_norm`` (‖ΔW*‖), ``discarded_energy`` 0.

    Reference:
        FFA-LoRA, ICLR 2024, https://arxiv.org/abs/2403.12313
    """
    return _FreezeA()


@dataclass(frozen=True, slots=True)
class _FreezeA:
    def trains(self, number: int) -> frozenset[Literal["a", "b"]]:  # noqa: ARG002 - B in every round
        return frozenset({"b"})

    def __call__(
        self, adapters: Mapping[str, Adapter], weights: Mapping[str, float], previous: Adapter
    ) -> Merged:
        shares = factor_averages.checked_shares(adapters, weights, previous)
        factor_averages.check_shared_a(adapters, shares, previous, "freeze_a")
        return factor_averages.average_factor(adapters, shares, previous, "b")
