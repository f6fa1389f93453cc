"""Average A and B separately, and add what that misses to every site's base: exact.

With weights p_i, the previous scale s and B_i brought to it (B_i ← (s_i / s) B_i):

    adapter  Ā = Σ p_i A_i,  B̄ = Σ p_i B_i;   change = ΔW* − s B̄ Ā = s Σ p_i (B_i − B̄)(A_i − Ā).

The change is sent as factors of the smallest rank: for n sites of rank r at most (n − 1) r. The
base changes, so every site must apply the same change; in a run it stays factors beside the weights
(``curation/model/base_change.py``), so that a base of few bits takes it up exactly.

Reference:
    R. Singhal, K. Ponkshe, P. Vepakomma, FedEx-LoRA: Exact Aggregation for Federated and Efficient
    Fine-Tuning of Large Language Models, ACL 2025, https://arxiv.org/abs/2410.09432
    Differs from the paper: the residual is never formed densely; unequal ranks are padded with
    zeros to the largest, and scales may differ.
"""

from collections.abc import Mapping
from dataclasses import replace

from fedwinnow.curation.adapters import algebra as maths
from fedwinnow.curation.adapters import checks
from fedwinnow.curation.datatypes import Adapter
from fedwinnow.strategies.interfaces.merging import Merged, Merging
from fedwinnow.strategies.merge_maths import factor_averages


def fedex() -> Merging:
    """Average the factors, and move their covariance into the base.

    The adapter's rank is the largest of the sites'. Report: ``rank`` (of the adapter),
    ``change_rank`` (largest of a module; 0: no change), ``target_norm`` (‖ΔW*‖), ``change_norm``
    (of what goes to the base), ``discarded_energy`` 0.

    Reference:
        FedEx-LoRA, ACL 2025, https://arxiv.org/abs/2410.09432
    """
    return _merge


def _merge(
    adapters: Mapping[str, Adapter], weights: Mapping[str, float], previous: Adapter
) -> Merged:
    shares = factor_averages.checked_shares(adapters, weights, previous)
    a, b, norms, missed = {}, {}, {}, 0.0
    for module in previous.modules:
        both = factor_averages.average_both_factors(adapters, shares, module)
        missed += maths.norm(both.covariance) ** 2
        norms[module] = maths.norm(maths.target(adapters, shares, module))
        a[module] = both.mean.right.to(previous.a[module].dtype)
        b[module] = (both.mean.left / previous.scales[module]).to(previous.b[module].dtype)
    merged = replace(previous, a=a, b=b)
    checks.check_adapter(merged)
    change = factor_averages.base_change_factors(
        previous,
        lambda module: factor_averages.average_both_factors(adapters, shares, module).covariance,
        norms,
    )
    report = factor_averages.exact_report(merged, sum(norm**2 for norm in norms.values()))
    report["change_rank"] = factor_averages.largest_rank(change) if change else 0.0
    report["change_norm"] = missed**0.5
    return Merged(adapter=merged, report=report, change=change)
