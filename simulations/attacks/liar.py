"""Change the honest replies of an in-process site by one attack before they leave."""

from dataclasses import dataclass, replace

from fedwinnow.curation.protocol.messages import Reply, Request
from fedwinnow.curation.protocol.replies import Refusal
from fedwinnow.curation.protocol.requests import SelectRequest
from fedwinnow.simulations.attacks.catalogue import Attack, seed_of
from fedwinnow.simulations.runtimes.in_process import AnsweringSite


@dataclass(frozen=True, slots=True, kw_only=True)
class Liar:
    """Lying site: wraps a site that computes and keeps the honest replies.

    A lie is a function of the honest reply, the request and the seed: a resumed run gets the same
    lies again.
    """

    name: str
    site: AnsweringSite
    attack: Attack
    seed: int
    """Seed of random lies."""

    def handle(self, request: Request) -> Reply:
        """Answer a request with a lie; a refusal is passed on unchanged."""
        return self._lie(request, self.site.handle(self._heard(request)))

    def answer(self, request: Request) -> Reply:
        """Answer a request with a lie; raise errors instead of refusing."""
        return self._lie(request, self.site.answer(self._heard(request)))

    def _heard(self, request: Request) -> Request:
        """Return the request as the site gets it: a threshold of −∞ where the liar keeps all."""
        if self.attack.keeps_all and isinstance(request, SelectRequest):
            return replace(request, threshold=float("-inf"), per_site={})
        return request

    def _lie(self, request: Request, reply: Reply) -> Reply:
        if isinstance(reply, Refusal):
            return reply
        return self.attack.lie(request, reply, seed_of(self.seed, request, self.name))
