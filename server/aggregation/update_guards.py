"""Limit what one site alone can do to a merge: robust guards beside any merging rule.

With U_i = ΔW_i − ΔW (what site i changed in this round, ΔW the update that all started from), the
guards compute, from products of factors, inner products ⟨U_i, U_j⟩ = Σ_m ⟨L_iᵀ L_j, R_i R_jᵀ⟩,
norms, and coordinates of all U_i in shared bases. None of it needs the base model or data.

Reference:
    P. Blanchard et al., Machine Learning with Adversaries: Byzantine Tolerant Gradient Descent
    (Krum), NeurIPS 2017, section 4, https://arxiv.org/abs/1703.02757; D. Yin et al.,
    Byzantine-Robust Distributed Learning (median, trimmed mean), ICML 2018, definitions 1 and 2,
    https://arxiv.org/abs/1803.01498
    Differs from the papers: on updates ΔW, not on A and B apart, which have no meaning alone; the
    coordinates are those of the principal bases of all updates together.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Float, Float64
from torch import Tensor

from fedwinnow.curation.adapters import algebra as maths
from fedwinnow.curation.adapters.algebra import balance_factors, interpolate
from fedwinnow.curation.datatypes import Adapter
from fedwinnow.curation.errors import ConfigError
from fedwinnow.strategies.interfaces.weighting import Effect
from fedwinnow.strategies.weighting.samples_kept import capped

Updates = Mapping[str, Mapping[str, maths.Product]]
"""Site → module → U_i as a product."""
Losses = Float[np.ndarray, " anchors"]


def site_updates(adapters: Mapping[str, Adapter], previous: Adapter) -> Updates:
    """Return U_i of every site and module; sites in sorted order of name."""
    return {
        site: {
            module: maths.sum_products(
                [maths.delta(adapters[site], module), maths.delta(previous, module, -1.0)]
            )
            for module in previous.modules
        }
        for site in sorted(adapters)
    }


def update_gram(changes: Updates) -> Float64[Tensor, "sites sites"]:
    """Return ⟨U_i, U_j⟩ over all modules, sites in sorted order of name."""
    sites = sorted(changes)
    found = torch.zeros(len(sites), len(sites), dtype=torch.float64)
    for i, first in enumerate(sites):
        for j, second in enumerate(sites[: i + 1]):
            total = 0.0
            for module, one in changes[first].items():
                other = changes[second][module]
                total += float(((one.left.T @ other.left) * (one.right @ other.right.T)).sum())
            found[i, j] = found[j, i] = total
    return found


def bound_norms(
    adapters: Mapping[str, Adapter], previous: Adapter, *, most: float
) -> tuple[Mapping[str, Adapter], Mapping[str, str]]:
    """Shorten updates that are longer than ``most`` times the median length.

    A long U_i keeps its direction. The median is the lower one, so that with two sites the shorter
    update sets the limit.

    Args:
        adapters: Site → adapter.
        previous: The adapter that all started from.
        most: Longest allowed ‖U_i‖ in medians, above 0.

    Returns:
        The adapters, and site → reason for those that were shortened.
    """
    lengths = update_gram(site_updates(adapters, previous)).diagonal().clamp(min=0).sqrt()
    limit = most * float(lengths.median())
    kept, words = dict(adapters), {}
    for site, length in zip(sorted(adapters), lengths.tolist(), strict=True):
        if length > limit:
            kept[site] = interpolate(previous, adapters[site], limit / length)
            words[site] = (
                f"its update of norm {length:.4g} was shortened to {limit:.4g}, {most:g} times the "
                "median norm"
            )
    return kept, words


def cap_weights(
    weights: Mapping[str, float], *, most: float
) -> tuple[Mapping[str, float], Mapping[str, str]]:
    """Cap each site's weight at ``most``; the excess goes to the others in proportion.

    Where there are too few sites for the cap, all weigh the same.

    Args:
        weights: Site → share; they sum to 1.
        most: Largest share, in (0, 1].

    Returns:
        The weights, and site → reason for those that were cut.
    """
    positive = {site: weight for site, weight in sorted(weights.items()) if weight > 0}
    if not positive or max(positive.values()) <= most:
        return weights, {}
    shares = capped(positive, most)
    words = {
        site: f"its weight of {weight:.3f} was cut to {shares[site]:.3f}"
        for site, weight in positive.items()
        if shares[site] < weight
    }
    return {**dict.fromkeys(weights, 0.0), **shares}, words


def krum(
    adapters: Mapping[str, Adapter], previous: Adapter, *, liars: int
) -> tuple[tuple[str, ...], Mapping[str, str]]:
    """Leave out the ``liars`` sites with updates furthest from their neighbours' (Multi-Krum).

    A site's score is the sum of squared distances to its n − f − 2 nearest others.

    Returns:
        The sites that stay, and site → reason for the others.

    Raises:
        ConfigError: fewer than 2 f + 3 sites.
    """
    _enough(len(adapters), 2 * liars + 3, "krum", liars)
    inner, sites = update_gram(site_updates(adapters, previous)), sorted(adapters)
    squares = inner.diagonal()
    apart = (squares[:, None] + squares[None, :] - 2 * inner).clamp(min=0)
    apart.fill_diagonal_(0.0)
    nearest = len(sites) - liars - 2
    scores = apart.sort(dim=1).values[:, 1 : 1 + nearest].sum(dim=1)
    order = sorted(range(len(sites)), key=lambda i: (float(scores[i]), sites[i]))
    stay = tuple(sorted(sites[i] for i in order[: len(sites) - liars]))
    words = {
        sites[i]: (
            f"its update was left out: {float(scores[i]) ** 0.5:.4g} from its nearest others, the "
            f"furthest of {len(sites)} (Krum)"
        )
        for i in order[len(sites) - liars :]
    }
    return stay, words


def shared_coordinates(
    changes: Updates, module: str
) -> tuple[Float64[Tensor, "outputs p"], Float64[Tensor, "sites p q"], Float64[Tensor, "q inputs"]]:
    """Return one module's U_i in bases that all share: U_i = left @ cores[i] @ right, exactly."""
    parts = [changes[site][module] for site in sorted(changes)]
    whole = maths.sum_products(parts)
    left, _ = torch.linalg.qr(whole.left)
    right, _ = torch.linalg.qr(whole.right.T)
    cores = torch.stack([(left.T @ part.left) @ (part.right @ right) for part in parts])
    # Principal axes of all updates: the sites' order and factors then do not matter.
    u, _, vt = torch.linalg.svd(cores.mean(dim=0))
    return left @ u, u.T @ cores @ vt.T, vt @ right.T


def robust_middle(
    adapters: Mapping[str, Adapter], previous: Adapter, *, kind: str, liars: int
) -> Adapter:
    """Return the adapter whose update is the coordinate-wise median or trimmed mean of all.

    Every site counts alike, whatever its weight.

    Args:
        adapters: Site → adapter, at least 2 f + 1.
        previous: The adapter that all started from.
        kind: "median" or "trimmed_mean".
        liars: Number of the smallest and of the largest values of a coordinate that the trimmed
            mean leaves out.

    Raises:
        ConfigError: fewer than 2 f + 1 sites.
    """
    _enough(len(adapters), 2 * liars + 1, kind, liars)
    changes, a, b = site_updates(adapters, previous), {}, {}
    for module in previous.modules:
        left, cores, right = shared_coordinates(changes, module)
        ordered = cores.sort(dim=0).values
        number = len(ordered)
        if kind == "median":
            centre = (ordered[(number - 1) // 2] + ordered[number // 2]) / 2
        else:
            centre = ordered[liars : number - liars].mean(dim=0)
        moved = maths.Product(left=left @ centre, right=right)
        whole = maths.decompose(maths.sum_products([maths.delta(previous, module), moved]))
        a[module], b[module] = balance_factors(whole, previous, module)
    return replace(previous, a=a, b=b)


def harmful_sites(
    losses: Mapping[str, Mapping[str, Losses]], before: Losses, *, margin: float
) -> Mapping[str, str]:
    """Return the sites whose adapter raises the loss of public anchors by more than a margin.

    Args:
        losses: Owner → judge → loss of each anchor under the owner's adapter, nats; the owner's own
            losses do not count, and of the others' mean losses the median does.
        before: Loss of each anchor under the adapter that all started from, nats.
        margin: Largest rise of the mean loss, as a share of it.

    Returns:
        Owner → reason, for those that are left out.
    """
    start = float(np.mean(before))
    words = {}
    for owner, said in sorted(losses.items()):
        means = [float(np.mean(values)) for judge, values in said.items() if judge != owner]
        if not means:
            continue
        found = float(np.median(means))
        if found > start * (1 + margin):
            words[owner] = (
                f"its adapter was left out: the others measure a loss of {found:.4f} on public "
                f"anchors, {found / start - 1:+.1%} against {start:.4f} before the round"
            )
    return words


def effects_on_anchors(
    losses: Mapping[str, Mapping[str, Losses]], before: Losses, domains: Sequence[str]
) -> dict[str, dict[str, Effect]]:
    """Return site → domain → effect of the site's adapter on the loss of the anchors there.

    On each anchor, the median of the judges' losses counts, and the owner's own does not. A domain
    with one anchor has no spread: its error is 0.
    """
    found: dict[str, dict[str, Effect]] = {}
    for owner, said in sorted(losses.items()):
        told = [values for judge, values in said.items() if judge != owner]
        if not told:
            continue
        gains = np.asarray(before) - np.median(np.stack(told), axis=0)
        found[owner] = {}
        for domain in sorted(set(domains)):
            mine = gains[np.array(domains) == domain]
            error = float(mine.std(ddof=1) / len(mine) ** 0.5) if len(mine) > 1 else 0.0
            found[owner][domain] = Effect(gain=float(mine.mean()), error=error)
    return found


def _enough(sites: int, needed: int, rule: str, liars: int) -> None:
    if sites < needed:
        message = (
            f"guards.rule = {rule!r}: expected at least {needed} sites for guards.liars = {liars}, "
            f"got {sites} with an adapter; lower guards.liars or choose 'none'"
        )
        raise ConfigError(message)
