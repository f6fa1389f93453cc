"""Average A and B separately: the baseline of most federated LoRA systems, with its error.

With weights p_i and B_i brought to the previous scale s (B_i ← (s_i / s) B_i):

    Ā = Σ p_i A_i,   B̄ = Σ p_i B_i,   ΔW* − s B̄ Ā = s Σ p_i (B_i − B̄)(A_i − Ā).

The error is the weighted covariance of the factors. It is 0 for one site, or where all A_i or all
B_i are equal.

Reference:
    J. Zhang et al., Towards Building the Federated GPT: Federated Instruction Tuning (FedIT),
    ICASSP 2024, section 3, https://arxiv.org/abs/2305.05644
    Differs from the paper: unequal ranks are padded with zeros to the largest, as in Y. J. Cho et
    al., Heterogeneous LoRA for Federated Fine-tuning of On-Device Foundation Models, EMNLP 2024,
    https://arxiv.org/abs/2401.06432
"""

from collections.abc import Mapping
from dataclasses import replace

from fedwinnow.curation.adapters import algebra as maths
from fedwinnow.curation.adapters import checks
from fedwinnow.curation.datatypes import Adapter
from fedwinnow.strategies.interfaces.merging import Merged, Merging
from fedwinnow.strategies.merge_maths import factor_averages


def fedavg_factors() -> Merging:
    """Average the factors entry by entry; a named baseline, not exact.

    Report: ``rank`` (largest of a module), ``target_norm`` (‖ΔW*‖ over all modules), ``error_norm``
    (norm of the factors' covariance, exact, from cores) and, where ΔW* is not 0, ``relative_error``
    (their quotient; it may exceed 1).

    Reference:
        FedIT, ICASSP 2024, https://arxiv.org/abs/2305.05644
    """
    return _merge


def _merge(
    adapters: Mapping[str, Adapter], weights: Mapping[str, float], previous: Adapter
) -> Merged:
    shares = factor_averages.checked_shares(adapters, weights, previous)
    a, b, error, target = {}, {}, 0.0, 0.0
    for module in previous.modules:
        both = factor_averages.average_both_factors(adapters, shares, module)
        error += maths.norm(both.covariance) ** 2
        target += maths.norm(maths.target(adapters, shares, module)) ** 2
        a[module] = both.mean.right.to(previous.a[module].dtype)
        b[module] = (both.mean.left / previous.scales[module]).to(previous.b[module].dtype)
    merged = replace(previous, a=a, b=b)
    checks.check_adapter(merged)
    report = {
        "rank": factor_averages.largest_rank(merged),
        "target_norm": target**0.5,
        "error_norm": error**0.5,
    }
    if target > 0:
        report["relative_error"] = (error / target) ** 0.5
    return Merged(adapter=merged, report=report)
