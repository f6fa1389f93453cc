"""Add the stacked update to every site's base and start the adapter anew: exact, at any ranks.

With weights p_i and scales s_i, stacked and brought to the smallest rank by its singular values:

    change = Σ p_i s_i B_i A_i = U Σ Vᵀ;   adapter: A as it was sent, B = 0.

The base changes, so every site must apply the same change; in a run it stays factors beside the
weights (``curation/model/base_change.py``), so that a base of few bits takes it up exactly.

Reference:
    Z. Wang et al., FLoRA: Federated Fine-Tuning Large Language Models with Heterogeneous Low-Rank
    Adaptations, NeurIPS 2024, section 3, https://arxiv.org/abs/2409.05976
    Differs from the paper: directions below the rounding of float32 are not sent, and A starts from
    the previous one instead of a new draw, so that all sites need no seed.
"""

from collections.abc import Mapping
from dataclasses import replace

import torch

from fedwinnow.curation.adapters import algebra as maths
from fedwinnow.curation.datatypes import Adapter
from fedwinnow.strategies.interfaces.merging import Merged, Merging
from fedwinnow.strategies.merge_maths import factor_averages


def flora() -> Merging:
    """Move the whole update into the base; the adapter restarts at nothing.

    Ranks and scales may differ. The change has the rank that ΔW* has, at most the sum of the sites'
    ranks. Report: ``rank`` (of the adapter), ``change_rank`` (largest of a module; 0: no change),
    ``target_norm`` (‖ΔW*‖), ``discarded_energy`` 0.

    Reference:
        FLoRA, NeurIPS 2024, https://arxiv.org/abs/2409.05976
    """
    return _merge


def _merge(
    adapters: Mapping[str, Adapter], weights: Mapping[str, float], previous: Adapter
) -> Merged:
    shares = factor_averages.checked_shares(adapters, weights, previous)

    def product(module: str) -> maths.Product:
        return maths.target(adapters, shares, module)

    norms = {module: maths.norm(product(module)) for module in previous.modules}
    change = factor_averages.base_change_factors(previous, product, norms)
    restarted = replace(previous, b={m: torch.zeros_like(f) for m, f in previous.b.items()})
    square = sum(norm**2 for norm in norms.values())
    report = factor_averages.exact_report(restarted, square)
    report["change_rank"] = factor_averages.largest_rank(change) if change else 0.0
    return Merged(adapter=restarted, report=report, change=change)
