"""Train and average B in even rounds and A in odd ones: exact, as the other factor is shared.

With weights p_i, scales s_i and the previous scale s:

    even rounds  B = Σ p_i (s_i / s) B_i,  A as it was sent,
    odd rounds   A = Σ p_i (s_i / s) A_i,  B as it was sent;   s B A = Σ p_i s_i B_i A_i  in both.

Round 0 trains B: an untrained adapter has B = 0, and then A has no gradient.

Reference:
    S. Chen et al., Robust Federated Finetuning of LLMs via Alternating Optimization of LoRA
    (RoLoRA), NeurIPS 2025, https://arxiv.org/abs/2502.01755
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from fedwinnow.curation.datatypes import Adapter
from fedwinnow.curation.errors import IncompatibleAdapterError
from fedwinnow.strategies.interfaces.merging import FactorMerging, Merged
from fedwinnow.strategies.merge_maths import factor_averages


def alternate() -> FactorMerging:
    """Average whichever factor the sites trained; the other stays.

    The factor that all sites hold bit for bit as it was sent stays, and the other is averaged.
    Where both were changed, by one site or by two, the merge is refused by name. Report: ``rank``,
    ``target_norm`` (‖ΔW*‖), ``discarded_energy`` 0.

    Reference:
        RoLoRA, NeurIPS 2025, https://arxiv.org/abs/2502.01755
    """
    return _Alternate()


@dataclass(frozen=True, slots=True)
class _Alternate:
    def trains(self, number: int) -> frozenset[Literal["a", "b"]]:
        return frozenset({"a"}) if number % 2 else frozenset({"b"})

    def __call__(
        self, adapters: Mapping[str, Adapter], weights: Mapping[str, float], previous: Adapter
    ) -> Merged:
        shares = factor_averages.checked_shares(adapters, weights, previous)
        other_a = factor_averages.first_changed_factor(adapters, shares, previous, "a")
        other_b = factor_averages.first_changed_factor(adapters, shares, previous, "b")
        if other_a is not None and other_b is not None:
            message = (
                "merging alternate: expected one factor bit for bit as it was sent by every site, "
                f"got another A from site {other_a[0]!r} (module {other_a[1]}) and another B from "
                f"site {other_b[0]!r} (module {other_b[1]}); let all sites train the same one "
                "factor in a round, or set merging.name = 'core_svd'"
            )
            raise IncompatibleAdapterError(message)
        return factor_averages.average_factor(
            adapters, shares, previous, "b" if other_a is None else "a"
        )
