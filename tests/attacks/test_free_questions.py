"""A coordinator that asks as often as it likes: every question is charged before it is computed."""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from answer_envelope import answer_envelope
from toy_deployment_files import write_toy_deployment

from fedwinnow.client.boundary.guarded_site import GuardedSite
from fedwinnow.client.runs.process_cache import ProcessCache
from fedwinnow.client.site import Site
from fedwinnow.curation.adapters.checks import adapter_hash
from fedwinnow.curation.config.load_files import load_run, load_site
from fedwinnow.curation.config.strict_toml import canonical_json, to_toml
from fedwinnow.curation.protocol import messages as m
from fedwinnow.server.transport.coordinator_envelopes import CoordinatorEnvelopes

pytestmark = pytest.mark.attacks


class Attack:
    """One real site, and a malicious coordinator that holds the valid key."""

    def __init__(self, folder: Path) -> None:
        self.run = load_run(write_toy_deployment(folder))
        self.file = folder / "north" / "site.toml"
        self.envelopes = CoordinatorEnvelopes.open(self.run, folder / "coordinator")
        self.cache, self.boundary = ProcessCache(), None
        self.work = Path(load_site(self.file).work)

    def start(self, **policy):
        """Start the agent anew, with clauses of its own."""
        if self.boundary is not None:
            self.boundary.ledger.close()
        config = load_site(self.file)
        config = replace(config, policy=replace(config.policy, **policy))
        self.boundary = GuardedSite.open(config, cache=self.cache)

    def ask(self, request):
        """Ask through envelopes, as a real coordinator does."""
        reply = answer_envelope(self.envelopes.envelope(request, "north"), self.boundary)
        return self.envelopes.opened(reply, "north")

    def join(self, run, **terms):
        """Join a run."""
        agreed = self.run.terms()
        agreed = replace(agreed, **{n: replace(getattr(agreed, n), **v) for n, v in terms.items()})
        header = m.Header(run=run, phase="join")
        return self.ask(m.JoinRequest(header=header, terms=canonical_json(agreed)))

    def train(self, run, adapter, number=1):
        """Ask for a training round, which fails: nothing was selected before."""
        terms = self.run.terms().training
        header = m.Header(run, "train", number, "curated", adapter_hash(adapter))
        return self.ask(
            m.TrainRequest(
                header=header, adapter=adapter, step_offset=(number - 1) * terms.steps,
                total_steps=terms.rounds * terms.steps, sites=("north",),
            )  # fmt: skip
        )

    def lines(self):
        """The ledger as it is on the disk."""
        return [json.loads(line) for line in (self.work / "egress.jsonl").open()]


@pytest.fixture(scope="module")
def attack(tmp_path_factory):
    one = Attack(tmp_path_factory.mktemp("free"))
    yield one
    one.boundary.ledger.close()


def changed(adapter, number):
    """Another adapter: another request."""
    b = {name: factor + number for name, factor in adapter.b.items()}
    return replace(adapter, b=b)
