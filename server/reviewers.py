"""Whether a run has reviewers, and enough: adapters of members that judge others' samples."""

from collections.abc import Collection, Mapping

from fedwinnow.curation.config.run import RunConfig
from fedwinnow.curation.errors import PluginError, ProtocolError
from fedwinnow.strategies.run_plugins import FEWEST, reviewing


def enough_reviewers(sites: Collection[str], config: RunConfig, missing: Mapping[str, str]) -> bool:
    """Whether a plug-in of the run reads reviews at all.

    Args:
        sites: Who could review.
        config: The run.
        missing: Site → why it is not among them.

    Raises:
        ProtocolError: it does, and they are too few.
    """
    try:
        reader = reviewing(config.scorer, config.training.objective)
    except PluginError:
        return False  # the sites need the plug-in, and say so at join where they do not have it
    if reader and len(sites) < FEWEST:
        reasons = "; ".join(f"{site}: {why}" for site, why in sorted(missing.items()))
        message = (
            f"{reader} needs reviewers from at least {FEWEST} members, and {len(sites)} are there "
            f"({', '.join(sorted(sites))}{'; ' if reasons else ''}{reasons}); with fewer nobody "
            "can disagree: add members, or choose another scorer"
        )
        raise ProtocolError(message)
    return reader != ""
