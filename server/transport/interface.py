"""Define the interface of a transport: requests out, deliveries in."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from fedwinnow.curation.protocol.messages import Reply, Request


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery:
    """Reply of one site, or the reason why there is none."""

    site: str
    """Name of the site; "" where it never said it."""
    reply: Reply | None
    missing: str = ""
    """Why there is no reply."""
    request: Request | None = None
    """Earlier request that this belongs to; None for the request that all sites get."""
    bytes_down: int = 0
    bytes_up: int = 0


Earlier = Mapping[str, Sequence[Request]]
"""Site → requests that it missed and is to answer first, one after the other."""


class Transport(Protocol):
    """Transport of one request to many sites."""

    def exchange(
        self,
        request: Request,
        sites: Sequence[str],
        *,
        deadline: float,
        earlier: Earlier | None = None,
    ) -> Iterator[Delivery]:
        """Send to the named sites (none named: to every reachable one) and yield as they answer.

        Ends when all have answered or ``deadline`` seconds have passed; a site that did not answer
        is delivered with ``reply`` None and the reason. A site with ``earlier`` requests gets those
        first; each answer is delivered, and after a refusal or a silence the site gets no more.
        """
        ...
