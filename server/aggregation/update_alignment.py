"""Estimate to first order by how much each site's update lowers the public anchors' loss.

a_i = −Σ_m ⟨∂L/∂A_m, A_im − A_m⟩ + ⟨∂L/∂B_m, B_im − B_m⟩ in float64, with the gradient of each
member that sends one; the median over these counts, so that one liar among three bends nothing.

Reference:
    S. Fan, M. Pagliardini, M. Jaggi, DoGE, ICML 2024, https://arxiv.org/abs/2310.15393
"""

from collections.abc import Mapping

import numpy as np

from fedwinnow.curation.datatypes import Adapter
from fedwinnow.curation.errors import IncompatibleAdapterError
from fedwinnow.strategies.run_plugins import MergePlugins

WITNESSES = 3
"""Members that are asked for the gradient: the first by name."""


def gradient_sites(plugins: MergePlugins, sites: tuple[str, ...]) -> tuple[str, ...]:
    """Return the sites that send the anchors' gradient; none where no weighting reads it."""
    return sites[:WITNESSES] if plugins.reads_alignments else ()


def update_alignments(
    adapters: Mapping[str, Adapter], gradients: Mapping[str, Adapter], previous: Adapter
) -> dict[str, float]:
    """Return site → a_i, nats; empty where no gradient came.

    Raises:
        IncompatibleAdapterError: a site trained another rank than was sent, so that its factors
            cannot be subtracted from the previous ones.
    """
    if not gradients:
        return {}
    found = {}
    for site in sorted(adapters):
        adapter = adapters[site]
        for module in previous.modules:
            if adapter.a[module].shape != previous.a[module].shape:
                message = (
                    f"adapter of site {site!r}, module {module}: this weighting needs rank "
                    f"{len(previous.a[module])}, got {len(adapter.a[module])}; unset the site's "
                    "own rank, or choose another weighting"
                )
                raise IncompatibleAdapterError(message)
        said = [
            -sum(
                float(
                    (
                        getattr(gradient, part)[m].double() * (mine[m].double() - was[m].double())
                    ).sum()
                )
                for part, mine, was in (("a", adapter.a, previous.a), ("b", adapter.b, previous.b))
                for m in previous.modules
            )
            for gradient in gradients.values()
        ]
        found[site] = float(np.median(said))
    return found
