"""Find what most sites agree on, and require enough sites for a phase to go on."""

from collections import Counter
from collections.abc import Collection, Hashable, Mapping, Sized
from typing import TypeVar

from fedwinnow.curation.config.run import RunConfig
from fedwinnow.curation.errors import PluginError, ProtocolError
from fedwinnow.strategies.run_plugins import FEWEST, RunPlugins

K = TypeVar("K", bound=Hashable)


def majority(keys: Mapping[str, K]) -> K:
    """Return the value that most sites sent; on a tie, that of the first such site by name."""
    ((agreed, _),) = Counter(keys[site] for site in sorted(keys)).most_common(1)
    return agreed


def require_quorum(sites: Sized, config: RunConfig, phase: str, missing: Mapping[str, str]) -> None:
    """Refuse to go on with fewer sites than the phase needs, and never with none.

    Raises:
        ProtocolError: naming the sites that are missing, and why.
    """
    number, needed = len(sites), config.quorum.of(phase, config.run.minimum_sites)
    if number < max(1, needed):
        reasons = "; ".join(f"{site}: {why}" for site, why in sorted(missing.items()))
        message = f"{number} of at least {needed} sites agree ({reasons}); mend the named sites"
        raise ProtocolError(message)


def needs_reviewers(sites: Collection[str], config: RunConfig, missing: Mapping[str, str]) -> bool:
    """Return whether a plug-in of the run reads reviews.

    Args:
        sites: Sites that could review.
        config: Configuration of the run.
        missing: Site → why it is not among them.

    Raises:
        ProtocolError: a plug-in reads reviews, and the sites are too few.
    """
    try:
        reader = RunPlugins.of(config.terms()).reviews_reader
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
