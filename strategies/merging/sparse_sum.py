"""Add up weighted sparse differences: exact, on the union of the sites' supports.

With sparse differences δ_i from the base (LT-SFT: each site trains few entries of the weights),
weights p_i, the previous merge δ and a factor λ:

    δ + λ Σ p_i (δ_i − δ),   entries that several sites hold added up.

λ = 1 is the weighted mean; λ = n with equal weights adds up what n sites learned, as when a task
and a language are composed.

Reference:
    A. Ansell et al., Composable Sparse Fine-Tuning for Cross-Lingual Transfer (LT-SFT), ACL 2022,
    https://arxiv.org/abs/2110.07560
    Differs from the paper: terms have weights, and are measured from the start of the round.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from fedwinnow.curation.adapters import checks, sparse
from fedwinnow.curation.datatypes import Adapter, SparseAdapter
from fedwinnow.curation.errors import IncompatibleAdapterError
from fedwinnow.strategies.interfaces.merging import SparseMerged, SparseMerging
from fedwinnow.strategies.merge_maths.task_vectors import check_density, check_scale


def sparse_sum(*, density: float = 0.01, scale: float = 1.0) -> SparseMerging:
    """Add sparse differences up; report how much the sites' supports overlap.

    Only for sparse adapters: LoRA factors are refused by name. Report: ``entries`` and ``density``
    of the merge (share of all entries of its parameters), ``target_norm`` (norm of the merge) and,
    for two sites or more with entries, ``overlap`` (places that two sites share over places that
    either holds, summed over pairs; in [0, 1]) and ``overlap_over_chance`` (shared places over
    those that random supports of the same sizes would share).

    Args:
        density: Largest share of all entries that a site may change, in (0, 1].
        scale: λ, above 0.

    Raises:
        ValueError: a setting is out of range.

    Reference:
        LT-SFT, ACL 2022, https://arxiv.org/abs/2110.07560
    """
    check_density(density)
    check_scale(scale)
    return _SparseSum(density=density, scale=scale)


@dataclass(frozen=True, slots=True)
class _SparseSum:
    density: float
    scale: float

    def __call__(
        self,
        adapters: Mapping[str, SparseAdapter | Adapter],
        weights: Mapping[str, float],
        previous: SparseAdapter | Adapter,
    ) -> SparseMerged:
        start = sparse.check_sparse(previous)
        checked = {site: sparse.check_sparse(adapters[site], site=site) for site in adapters}
        sparse.check_same_base(checked, start)
        shares = checks.normalise_weights(checked, weights)
        size = sum(math.prod(shape) for shape in start.shapes.values())
        for site in shares:
            self._check_density(site, checked[site], size)
        terms = [(self.scale * share, checked[site]) for site, share in shares.items()]
        rest = [(1 - self.scale, start)] if self.scale != 1 else []
        indices, values, shared = {}, {}, 0
        for name in start.parameters:
            found = sparse.weighted_sum(terms, name)
            shared += int((found.holders * (found.holders - 1)).sum()) // 2
            if rest:
                found = sparse.weighted_sum([*terms, *rest], name)
            indices[name] = found.indices
            values[name] = found.values.to(start.values[name].dtype)
        merged = SparseAdapter(
            base=start.base, indices=indices, values=values, shapes=dict(start.shapes)
        )
        sparse.check_sparse(merged)
        report = _report(merged, size) | _overlap(
            [sparse.count_entries(checked[site]) for site in shares], shared, size
        )
        return SparseMerged(adapter=merged, report=report)

    def _check_density(self, site: str, adapter: SparseAdapter, size: int) -> None:
        entries = sparse.count_entries(adapter)
        if entries > math.ceil(self.density * size):
            message = (
                f"adapter of site {site!r}: expected at most {self.density:g} of {size} entries, "
                f"got {entries}; train fewer, or raise the rule's setting density"
            )
            raise IncompatibleAdapterError(message)


def _report(merged: SparseAdapter, size: int) -> dict[str, float]:
    entries = sparse.count_entries(merged)
    squares = (float(v.to(torch.float64).square().sum()) for v in merged.values.values())
    return {
        "entries": float(entries),
        "density": entries / size if size else 0.0,
        "target_norm": math.fsum(squares) ** 0.5,
    }


def _overlap(entries: list[int], shared: int, size: int) -> dict[str, float]:
    """Return the overlap of supports over all pairs, from their sizes and the shared places."""
    total, pairs = sum(entries), len(entries) - 1
    either = pairs * total - shared
    chance = (total**2 - sum(one**2 for one in entries)) / 2 / size if size else 0.0
    if either <= 0 or chance <= 0:
        return {}
    return {"overlap": shared / either, "overlap_over_chance": shared / chance}
