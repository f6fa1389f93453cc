"""Weigh sites by a law that was fitted to small merges of the same sites.

`fedwinnow mixture RUN` merges the kept adapters of a run with many weights, measures what each
mixture does to each category of public anchors, and writes the runs that this weighting reads.

Reference:
    J. Ye et al., Data Mixing Laws, ICLR 2025, https://arxiv.org/abs/2403.16952; the form and what
    differs from the paper: ``strategies/maths/mixture_law.py``
"""

from collections.abc import Mapping, Sequence
from typing import Any

from fedwinnow.curation.errors import PluginError, ProtocolError
from fedwinnow.strategies.interfaces.weighting import Weighting
from fedwinnow.strategies.maths.mixture_law import MixtureRun, best_mixture, fit_mixing_law
from fedwinnow.strategies.weighting.samples_kept import trained_sites


def mixing_law(
    *, runs: Sequence[Mapping[str, Any]], least: float = 0.02, most: float = 0.6
) -> Weighting:
    """Weigh sites by the mixture that a fitted law expects to have the smallest loss.

    Sites that take no part in a round leave their weight to the others in proportion.

    Args:
        runs: Tables with ``weights`` (site → share) and ``losses`` (category → nats), at least two
            more than sites; `fedwinnow mixture` writes them.
        least: Smallest weight of a site, in [0, 1 / sites].
        most: Largest weight of a site, in [1 / sites, 1]: a law is trusted near what it saw.

    Raises:
        ValueError: a run lacks a table, or no weights lie within the bounds.

    Reference:
        Data Mixing Laws, ICLR 2025, https://arxiv.org/abs/2403.16952
    """
    for number, run in enumerate(runs, start=1):
        if not isinstance(run, Mapping) or set(run) != {"weights", "losses"}:
            message = f"runs[{number}]: expected the tables weights and losses, got {run!r}"
            raise ValueError(message)
    law = fit_mixing_law([MixtureRun(**run) for run in runs])
    try:
        best = best_mixture(law, least=least, most=most)
    except ProtocolError as error:  # its bounds are settings here
        message = f"least = {least}, most = {most}: {error}"
        raise ValueError(message) from error

    def weigh(counts: Mapping[str, int]) -> Mapping[str, float]:
        sites = trained_sites(counts)
        strange = [site for site in sites if site not in best]
        if strange:
            message = (
                f"weighting 'mixing_law' knows no site {strange[0]!r}; its runs are of "
                f"{', '.join(best)}: measure them again with this run's sites"
            )
            raise PluginError(message)
        total = sum(best[site] for site in sites)
        if total == 0:
            return dict.fromkeys(sites, 1 / len(sites))
        return {site: best[site] / total for site in sites}

    return weigh
