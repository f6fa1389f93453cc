"""Adapters as points: exact combinations of updates, and factors made from a spectrum.

ΔW = Σ_k c_k s_k B_k A_k of adapters of one base. Where all of them have one factor in common it
stays, and the other is combined; else the factors are stacked, and the ranks add.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from fedwinnow.curation.adapters import algebra as maths
from fedwinnow.curation.datatypes import Adapter


def combined(parts: Sequence[tuple[float, Adapter]], like: Adapter) -> Adapter:
    """The adapter whose update is the weighted sum of several, exactly.

    Args:
        parts: At least one (coefficient, adapter), all of the modules of ``like``.
        like: Gives base, scales and dtypes.
    """
    a, b = {}, {}
    for module in like.modules:
        products = [(share, maths.delta(one, module)) for share, one in parts]
        (share, first), *others = products
        left, right = first.left, first.right
        if all(torch.equal(right, other.right) for _, other in others):
            left = sum((c * other.left for c, other in others), start=share * left)
        elif all(torch.equal(left, other.left) for _, other in others):
            right = sum((c * other.right for c, other in others), start=share * right)
        else:
            whole = maths.total([maths.delta(one, module, c) for c, one in parts])
            left, right = whole.left, whole.right
        a[module] = right.to(like.a[module].dtype)
        b[module] = (left / like.scales[module]).to(like.b[module].dtype)
    return replace(like, a=a, b=b)


def between(start: Adapter, end: Adapter, share: float) -> Adapter:
    """ΔW_start + share · (ΔW_end − ΔW_start), in the scales and dtypes of ``end``."""
    return combined([(1 - share, start), (share, end)], end)


def balanced(
    spectrum: maths.Spectrum, like: Adapter, module: str, kept: slice = slice(None)
) -> tuple[Float[Tensor, "rank inputs"], Float[Tensor, "outputs rank"]]:
    """A and B of one module with singular values in equal parts in both.

    Args:
        spectrum: Of the update.
        like: Gives scale and dtypes of the module.
        module: Its name.
        kept: Which directions; all by default.
    """
    root = spectrum.values[kept].sqrt()
    a, b = root[:, None] * spectrum.vt[kept], spectrum.u[:, kept] * root
    scaled = b / like.scales[module]
    return a.to(like.a[module].dtype), scaled.to(like.b[module].dtype)
