"""Stack the factors: the exact merge, whose rank is the sum of the sites' ranks.

With weights p_i, scales s_i and the previous scale s:

    B = [p_1 (s_1 / s) B_1, …, p_n (s_n / s) B_n],   A = [A_1; …; A_n],   so that  s B A = ΔW*.

Reference:
    Z. Wang et al., FLoRA: Federated Fine-Tuning Large Language Models with Heterogeneous Low-Rank
    Adaptations, NeurIPS 2024, section 3, https://arxiv.org/abs/2409.05976
    Differs from the paper: the merged adapter stays an adapter; nothing is added to the base model.
"""

from collections.abc import Mapping
from dataclasses import replace

from fedwinnow.curation.adapters import algebra as maths
from fedwinnow.curation.adapters import checks
from fedwinnow.curation.datatypes import Adapter
from fedwinnow.strategies.interfaces.merging import Merged, Merging
from fedwinnow.strategies.merge_maths import factor_averages


def stack() -> Merging:
    """Merge without any error; the rank grows with every site and round.

    Sites train from what was merged, so after R rounds of n sites the rank is up to nᴿ times the
    first: use it for one round or as the reference, and ``core_svd`` otherwise. Sites with weight 0
    are left out. Report: ``rank`` (largest of a module), ``target_norm`` (‖ΔW*‖ over all modules)
    and ``discarded_energy`` 0.

    Reference:
        FLoRA, NeurIPS 2024, https://arxiv.org/abs/2409.05976
    """
    return _merge


def _merge(
    adapters: Mapping[str, Adapter], weights: Mapping[str, float], previous: Adapter
) -> Merged:
    shares = factor_averages.checked_shares(adapters, weights, previous)
    a, b, square = {}, {}, 0.0
    for module in previous.modules:
        product = maths.target(adapters, shares, module)
        square += maths.norm(product) ** 2
        left = product.left / previous.scales[module]
        a[module] = product.right.to(previous.a[module].dtype)
        b[module] = left.to(previous.b[module].dtype)
    merged = replace(previous, a=a, b=b)
    checks.check_adapter(merged)
    return Merged(adapter=merged, report=factor_averages.exact_report(merged, square))
