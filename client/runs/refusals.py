"""Build refusals: a clause of a closed list, and a reason without anything that a site measured.

In a deployment the full reason goes into the site's own log, beside a random reference that the
refusal carries: by it an operator finds what a coordinator asks about. In a simulation all is one
person's, who has no log of the site's own, so the full reason is told.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from fedwinnow.client.runs.told_text import ToldText
from fedwinnow.curation.errors import CurationError
from fedwinnow.curation.protocol.header import Header
from fedwinnow.curation.protocol.refusal_clauses import (
    CLAUSES,
    FAILED,
    LONGEST_REASON,
    new_reference,
)
from fedwinnow.curation.protocol.replies import Refusal

logger = logging.getLogger(__name__)

OWN = "the site could not compute this; its own log says why"
"""Reason in place of an error text, as error texts name the silo's paths, columns and counts."""
REASONS = {
    "adapter": "the adapter of this request does not fit this site's base model or the run",
    "protocol": "this request does not fit the run, as this site knows it",
    "reviewers": "the adapters of other members that this request brings cannot be used",
    "terms": "this site cannot run under these terms",
}
"""Reason of a clause whose error tells no text of its own."""


def refusal_of(
    error: Exception, header: Header, site: str, *, simulation: bool, otherwise: str = OWN
) -> Refusal:
    """Return the refusal for an error, and log the full reason.

    Args:
        error: What went wrong.
        header: Header of the request.
        site: Name of the site.
        simulation: Whether the error's own text may be told, as the site is simulated.
        otherwise: The reason where nothing more may be told.
    """
    reference = "" if simulation else new_reference()
    clause = clause_of(error)
    beside = f" (reference {reference})" if reference else ""
    if isinstance(error, CurationError):
        logger.warning("site %s refuses %s%s: %s", site, header.phase, beside, error)
    else:
        logger.error("site %s failed in phase %s%s", site, header.phase, beside, exc_info=error)
    told = f"{type(error).__name__}: {error}" if simulation else ""
    reason = told or _reason(error, clause, otherwise)
    return Refusal(header=header, site=site, clause=clause, reason=reason, reference=reference)


def clause_of(error: Exception) -> str:
    """Return the clause that an error is told by; ``failed`` for all that name none."""
    clause = error.clause if isinstance(error, CurationError) else FAILED
    return clause if clause in CLAUSES else FAILED


@contextmanager
def refused_by(clause: str) -> Iterator[None]:
    """Let errors inside the block be told by a clause, if they name none of their own.

    Only for what follows from the request and the site's configuration alone: a clause that
    depends on a private sample would tell of it.
    """
    try:
        yield
    except CurationError as error:
        if error.clause == FAILED:
            error.clause = clause
        raise


def _reason(error: Exception, clause: str, otherwise: str) -> str:
    told = error.told if isinstance(error, CurationError) else ""
    if isinstance(told, ToldText) and told:
        return str(told)[:LONGEST_REASON]
    return REASONS.get(clause, otherwise)
