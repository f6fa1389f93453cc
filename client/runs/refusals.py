"""Build refusals: a clause, and a reason without the silo's data, in place of an answer."""

from fedwinnow.curation.errors import RefusalError
from fedwinnow.curation.protocol.header import Header
from fedwinnow.curation.protocol.replies import Refusal

OWN = "the site could not compute this; its own log says why"
"""Reason in place of an error text, as error texts name the silo's paths, columns and counts."""


def refusal_of(
    error: Exception, header: Header, site: str, *, told: bool, otherwise: str = OWN
) -> Refusal:
    """Return the refusal for an error; its clause is a policy's, or the name of the error's class.

    Args:
        error: What went wrong.
        header: Header of the request.
        site: Name of the site.
        told: Whether the error's own text may leave the site.
        otherwise: The reason where it may not.
    """
    clause = error.clause if isinstance(error, RefusalError) else type(error).__name__
    reason = str(error) or "no words" if told else otherwise
    return Refusal(header=header, site=site, clause=clause, reason=reason)
