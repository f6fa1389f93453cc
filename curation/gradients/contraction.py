"""Contract per-sample LoRA gradients before they are freed: dots, norms, Adam forms, sums.

For the gradient g_i of sample i, references G_k and Adam's moments m, v after n steps:

    dot_ik = ⟨g_i, G_k⟩    norm_i = ‖g_i‖    adam_dot_ik = ⟨Γ(g_i), G_k⟩    adam_norm_i = ‖Γ(g_i)‖
    adam_adam_dot_ik = ⟨Γ(g_i), Γ(G_k)⟩      influence_ik = ⟨g_i, u_k⟩, u_k of DataInf

Each is a sum over factors (norms: of squares), so one factor's gradients at a time are enough. The
references u_k come from ``client/measuring/datainf.py``.

References:
    M. Xia et al., LESS, ICML 2024, section 3.2 (Adam-aware), https://arxiv.org/abs/2402.04333
    D. Kingma, J. Ba, Adam, ICLR 2015, algorithm 1, https://arxiv.org/abs/1412.6980
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from fedwinnow.curation.errors import RunError

BETAS = (0.9, 0.999)
"""Decay rates of Adam's moments."""
EPSILON = 1e-8
"""Added to √v̂, outside the root."""


@dataclass(slots=True, kw_only=True)
class WeightedSums:
    """Running Σ_i w_ji g_i for rows j of weights, and Σ_i q_i g_i² for Adam's second moment."""

    weights: Float[Tensor, "rows batch"]
    """Of the current batch; set before each backward pass."""
    square_weights: Float[Tensor, " batch"]
    sums: dict[str, Float[Tensor, "rows parameters"]] = field(default_factory=dict)
    squares: dict[str, Float[Tensor, " parameters"]] = field(default_factory=dict)

    def __call__(self, name: str, gradients: Float[Tensor, "batch rows columns"]) -> None:
        """Add one factor's gradients of one batch."""
        flat = gradients.flatten(1)
        added = self.weights.to(flat) @ flat
        squared = self.square_weights.to(flat) @ flat.square()
        if name in self.sums:
            added += self.sums[name]
            squared += self.squares[name]
        self.sums[name], self.squares[name] = added, squared

    def forget(self) -> None:
        """Discard the sums of all batches."""
        self.sums.clear()
        self.squares.clear()


@dataclass(frozen=True, slots=True, kw_only=True)
class Moments:
    """Adam's moments after ``count`` steps, by factor; not bias-corrected."""

    first: Mapping[str, Float[Tensor, " parameters"]]
    second: Mapping[str, Float[Tensor, " parameters"]]
    count: int


def adam_direction(
    gradients: Float[Tensor, "batch parameters"],
    first: Float[Tensor, " parameters"],
    second: Float[Tensor, " parameters"],
    count: int,
) -> Float[Tensor, "batch parameters"]:
    """Return Γ(g) = m̂ / (√v̂ + ε) after a virtual Adam step on g from moments of ``count`` steps.

    m̂ = (β₁ m + (1 − β₁) g) / (1 − β₁^(count+1)), v̂ likewise with β₂ and g².

    Differs from the papers' code, which puts ε inside the root and skips the bias correction.
    """
    beta, gamma = BETAS
    steps = count + 1
    mean = torch.lerp(gradients, first, beta).div_(1 - beta**steps)
    spread = torch.lerp(gradients.square(), second, gamma).div_(1 - gamma**steps)
    return mean.div_(spread.sqrt_().add_(EPSILON))


@dataclass(slots=True, kw_only=True)
class Contraction:
    """Dots with k references, norms and Adam-aware forms of a batch, summed over layers."""

    references: Mapping[str, Float[Tensor, "k parameters"]]
    moments: Moments | None = None
    """None leaves the Adam-aware forms out."""
    plain: bool = True
    """Whether plain dots and norms are wanted."""
    adam_references: Mapping[str, Float[Tensor, "k parameters"]] = field(default_factory=dict)
    """Γ(G_k); empty leaves their dots out."""
    directions: Mapping[str, Float[Tensor, "k parameters"]] = field(default_factory=dict)
    """u_k of DataInf; empty leaves the influence out."""
    shares: Float[Tensor, " batch"] | None = None
    """∂L/∂ℓ_i of the loss L differentiated, by which gradients are divided; None: L is the sum."""
    dots: Tensor | None = None
    norms: list[Tensor] = field(default_factory=list)
    """Norms of each factor; the norm of these is the norm of all."""
    adam_dots: Tensor | None = None
    adam_norms: list[Tensor] = field(default_factory=list)
    adam_adam_dots: Tensor | None = None
    influences: Tensor | None = None

    def __call__(self, name: str, gradients: Float[Tensor, "batch rows columns"]) -> None:
        """Contract one factor's gradients without keeping them."""
        flat = gradients.flatten(1)
        references = self.references[name]
        if self.plain:
            self.dots = _added(self.dots, flat, references)
            self.norms.append(torch.linalg.vector_norm(flat, dim=1))
        if self.directions:
            self.influences = _added(self.influences, flat, self.directions[name])
        if self.moments is not None:
            whole = flat if self.shares is None else flat / self.shares.to(flat)[:, None]
            direction = adam_direction(
                whole, self.moments.first[name], self.moments.second[name], self.moments.count
            )
            self.adam_dots = _added(self.adam_dots, direction, references)
            self.adam_norms.append(torch.linalg.vector_norm(direction, dim=1))
            if self.adam_references:
                adam = self.adam_references[name]
                self.adam_adam_dots = _added(self.adam_adam_dots, direction, adam)

    def columns(self, wanted: Collection[str]) -> dict[str, Tensor]:
        """Return the wanted columns that gradients give: name → (batch,) or (batch, k).

        Raises:
            RunError: a wanted column was not gathered.
        """
        found = {
            "dot": _divided(self.dots, self.shares),
            "influence": _divided(self.influences, self.shares),
            "norm": _divided(_norm(self.norms), None if self.shares is None else self.shares.abs()),
            "adam_dot": self.adam_dots,
            "adam_adam_dot": self.adam_adam_dots,
            "adam_norm": _norm(self.adam_norms),
        }
        chosen = {name: values for name, values in found.items() if name in wanted}
        if lacking := sorted(name for name, values in chosen.items() if values is None):
            message = (
                f"signal columns {', '.join(lacking)}: no gradient was contracted for them; name "
                "them before the pass (References.contraction)"
            )
            raise RunError(message)
        return {name: values for name, values in chosen.items() if values is not None}

    def reset(self) -> None:
        """Discard the batch."""
        self.dots = self.adam_dots = self.adam_adam_dots = self.influences = self.shares = None
        self.norms.clear()
        self.adam_norms.clear()


def _added(
    total: Float[Tensor, "batch k"] | None,
    rows: Float[Tensor, "batch parameters"],
    references: Float[Tensor, "k parameters"],
) -> Float[Tensor, "batch k"]:
    """Return total + rows · referencesᵀ, added in place where there is a total."""
    return rows @ references.T if total is None else total.addmm_(rows, references.T)


def _norm(parts: list[Tensor]) -> Float[Tensor, " batch"] | None:
    """Return norms of whole gradients from those of their factors; None where there are none."""
    if not parts:
        return None
    found: Tensor = torch.linalg.vector_norm(torch.stack(parts), dim=0)
    return found


def _divided(values: Tensor | None, shares: Float[Tensor, " batch"] | None) -> Tensor | None:
    """Divide each sample's row by its share."""
    if values is None or shares is None:
        return values
    return values / shares.to(values).reshape(-1, *[1] * (values.ndim - 1))
