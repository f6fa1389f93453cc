"""Let replies out of a site: one door, through which nothing passes but what the policy shaped.

A :class:`Released` is made by :func:`release_reply`, which applies the policy, and by
:func:`release_refusal`, which tells constants alone. :func:`released_bytes` gives the encoding of
nothing else, and the guarded site has no other encoder.
"""

from dataclasses import dataclass
from typing import Final

from fedwinnow.client.boundary.disclosed_parts import check_parts
from fedwinnow.client.boundary.policy import Policy
from fedwinnow.client.budget.ledger import Ledger
from fedwinnow.client.runs.refusals import clause_of, refusal_of
from fedwinnow.client.runs.site_run import SiteRun
from fedwinnow.client.runs.told_text import constant, tell
from fedwinnow.curation.config.site import PolicySection
from fedwinnow.curation.errors import CurationError
from fedwinnow.curation.protocol import wire
from fedwinnow.curation.protocol.header import Header
from fedwinnow.curation.protocol.messages import Reply
from fedwinnow.curation.protocol.replies import Refusal

_KEY: Final = object()
"""What only the functions of this module hold."""


@dataclass(frozen=True, slots=True)
class Released:
    """Reply in the form in which it may leave the site; only this module makes one."""

    reply: Reply
    plain: bytes
    """The reply's encoding."""
    key: object

    def __post_init__(self) -> None:
        if self.key is not _KEY:
            message = "a reply leaves a site through release_reply() or release_refusal() alone"
            raise TypeError(message)


def release_reply(reply: Reply, run: SiteRun, policy: Policy, ledger: Ledger) -> Released:
    """Apply the policy to a computed reply, and return what may leave.

    Raises:
        RefusalError: the reply may not leave at all.
        NonFiniteError: a number of the reply is NaN or infinite.
        TypeError: it is a refusal, which is made of an error (:func:`release_refusal`), or holds
            what ``client/boundary/disclosed_parts.py`` does not list.
    """
    if isinstance(reply, Refusal):
        message = "a refusal leaves a site through release_refusal(), which makes its words"
        raise TypeError(message)
    shaped = policy.release(reply, run, ledger)
    check_parts(shaped, run.config)
    return Released(shaped, wire.encode(shaped), _KEY)


def release_refusal(
    error: Exception, header: Header, site: str, section: PolicySection, *, simulation: bool
) -> Released:
    """Return the refusal for an error; its full reason goes to the site's own log.

    A refusal by a policy clause tells the clause's value where the error itself tells nothing.
    """
    policy, _, name = clause_of(error).partition(".")
    if isinstance(error, CurationError) and not error.told and policy == "policy":
        named = hasattr(section, name)
        limit = tell("{limit}", limit=constant(name, section)) if named else tell("no other")
        error.told = tell("this site's policy sets {limit}", limit=limit)
    refusal = refusal_of(error, header, site, simulation=simulation)
    return Released(refusal, wire.encode(refusal), _KEY)


def released_bytes(released: Released) -> bytes:
    """Return the encoding of a released reply for the wire.

    Raises:
        TypeError: anything else was given.
    """
    if not isinstance(released, Released):
        message = f"a {type(released).__name__} was not released, so it cannot leave this site"
        raise TypeError(message)
    return released.plain
