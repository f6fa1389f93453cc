"""Sparsify and merge entry by entry: trim the small, drop at random, elect a sign.

    trim   keep the share ``density`` of largest size, the rest is 0;
    drop   keep each entry with probability ``density`` and divide it by that, the rest is 0;
    elect  g = sign Σ p_i e_i;   m = Σ p_i e_i [e_i g > 0] / Σ p_i [e_i g > 0],  entry by entry.

Source of trim and elect: P. Yadav et al., TIES-Merging, NeurIPS 2023,
https://arxiv.org/abs/2306.01708 (here with weights p_i, and trimmed module by module); of drop:
L. Yu et al., Language Models are Super Mario (DARE), ICML 2024,
https://arxiv.org/abs/2311.03099.
"""

import math
from collections.abc import Callable, Mapping

import torch
from jaxtyping import Float64
from torch import Tensor


def trim(
    entries: Float64[Tensor, "rows columns"], density: float
) -> Float64[Tensor, "rows columns"]:
    """Keep the ⌈density · number⌉ largest entries by size, and ties with the last of these."""
    keep = math.ceil(density * entries.numel())
    if keep >= entries.numel():
        return entries
    sizes = entries.abs()
    smallest = sizes.flatten().kthvalue(entries.numel() - keep + 1).values
    return entries * (sizes >= smallest)


def drop_at_random(
    entries: Float64[Tensor, "rows columns"], density: float, seed: int
) -> Float64[Tensor, "rows columns"]:
    """Keep each entry with probability ``density`` and divide it by that, so the mean stays."""
    generator = torch.Generator().manual_seed(seed)
    draws = torch.rand(entries.shape, generator=generator, dtype=torch.float64)
    return entries * (draws < density) / density


def elect_sign(
    entries: Callable[[str], Float64[Tensor, "rows columns"]], shares: Mapping[str, float]
) -> Float64[Tensor, "rows columns"]:
    """Return the weighted mean of the entries that have the elected sign; 0 where no sign wins.

    Args:
        entries: Site → its entries; called twice a site, so that one site's are held at a time.
        shares: Site → weight above 0, of at least one site.
    """
    first, *others = shares
    mass = shares[first] * entries(first)
    for site in others:
        mass += shares[site] * entries(site)
    sign, above, below = mass.sign(), torch.zeros_like(mass), torch.zeros_like(mass)
    for site, share in shares.items():
        mine = entries(site)
        agrees = mine * sign > 0
        above += share * mine * agrees
        below += share * agrees
    return torch.where(below > 0, above / below.clamp(min=torch.finfo(torch.float64).tiny), 0.0)
