"""A coordinator that asks as often as it likes: every question is charged before it is computed."""

import gc
import tempfile
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from answer_envelope import answer_envelope
from toy_deployment_files import write_toy_deployment

from fedwinnow.client.boundary.guarded_site import GuardedSite
from fedwinnow.client.budget.ledger_chain import read_chain
from fedwinnow.client.runs.process_cache import ProcessCache
from fedwinnow.client.site import Site
from fedwinnow.curation.adapters.checks import adapter_hash
from fedwinnow.curation.config.load_files import load_run, load_site
from fedwinnow.curation.config.strict_toml import canonical_json
from fedwinnow.curation.errors import OutputError
from fedwinnow.curation.protocol import messages as m
from fedwinnow.curation.protocol import wire
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
        sent = self.envelopes.envelope(request, "north")
        back = answer_envelope(sent, self.boundary)
        return self.envelopes.reply(back, self.envelopes.sent(sent))

    def join(self, run, /, **terms):
        """Join a run."""
        agreed = self.run.terms()
        agreed = replace(agreed, **{n: replace(getattr(agreed, n), **v) for n, v in terms.items()})
        header = m.Header(run=run, phase="join")
        return self.ask(m.JoinRequest(header=header, terms=canonical_json(agreed)))

    def train(self, run, adapter, number=1):
        """Ask for a training round, which fails: nothing was selected before."""
        terms = self.run.terms().training
        header = m.Header(
            run=run, phase="train", round=number, arm="curated", adapter=adapter_hash(adapter)
        )
        return self.ask(
            m.TrainRequest(
                header=header,
                adapter=adapter,
                step_offset=(number - 1) * terms.steps,
                total_steps=terms.rounds * terms.steps,
                sites=("north",),
            )
        )

    def lines(self):
        """The ledger as it is on the disk."""
        return [tree for _, tree in read_chain(self.work)]


@pytest.fixture(scope="module")
def attack(tmp_path_factory):
    one = Attack(tmp_path_factory.mktemp("free"))
    yield one
    one.boundary.ledger.close()


def changed(adapter, number):
    """Another adapter: another request."""
    b = {name: factor + number for name, factor in adapter.b.items()}
    return replace(adapter, b=b)


def test_a_question_that_is_refused_is_charged_and_ends_with_the_budget(attack, monkeypatch):
    """Law: computed answers are bounded in number over all runs, refused or not."""
    attack.start(max_rounds=3)
    computed, honest = Counter(), Site.answer

    def counted(self, request, run=None):
        computed[request.header.phase] += 1
        return honest(self, request, run)

    monkeypatch.setattr(Site, "answer", counted)
    clauses = Counter()
    for run in ("a", "b", "c"):
        adapter = attack.join(run).adapter
        for number in range(5):
            reply = attack.train(run, changed(adapter, number))
            assert isinstance(reply, m.Refusal)
            clauses[reply.clause] += 1
    assert computed == {"join": 3, "train": 3}
    assert clauses == {"protocol": 3, "policy.max_rounds": 12}
    assert attack.join("d").clause == "policy.max_rounds"
    assert attack.join("e", run={"seed": 9}).clause == "policy.max_rounds"
    attack.start(max_rounds=3)
    assert attack.train("b", changed(adapter, 9)).clause == "policy.max_rounds"
    assert computed == {"join": 3, "train": 3}
    kinds = Counter(line["kind"] for line in attack.lines())
    assert (kinds["Charge:Joined"], kinds["Charge:TrainedAdapter"]) == (3, 3)


def test_the_same_question_is_charged_once_and_answered_from_disk(attack):
    """Equivalence: the same bytes back, one charge."""
    attack.start(max_rounds=9)
    before = len(attack.lines())
    assert wire.encode(attack.join("same")) == wire.encode(attack.join("same"))
    kinds = [line["kind"] for line in attack.lines()[before:]]
    assert kinds == ["Charge:Joined", "Joined", "Joined"]


class Killed(BaseException):
    """The process ends here; nothing catches it."""


def test_a_crash_while_computing_gives_nothing_back(attack, monkeypatch):
    """Edge: the charge is on the disk before the site computes, and counts after a restart."""
    attack.start(max_rounds=9)
    adapter = attack.join("crash").adapter

    def killed(*_):
        last = attack.lines()[-1]
        assert last["kind"] == "Charge:TrainedAdapter"
        assert (last["run"], last["round"], last["arm"]) == ("crash", 1, "curated")
        assert last["data"]
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Site, "answer", killed)
        with pytest.raises(Killed):
            attack.train("crash", adapter)
    attack.start(max_rounds=9)
    assert attack.train("crash", changed(adapter, 1)).clause == "policy.max_rounds"


def test_nothing_is_computed_where_the_charge_cannot_be_written(attack, monkeypatch):
    """Edge: a full disk."""
    attack.start(max_rounds=9)
    adapter = attack.join("full").adapter
    honest = attack.boundary.ledger.__class__.append

    def full(self, entry):
        if entry.kind.startswith("Charge:"):
            message = "no space"
            raise OutputError(message)
        return honest(self, entry)

    with monkeypatch.context() as patch:
        patch.setattr("fedwinnow.client.budget.ledger.Ledger.append", full)
        patch.setattr(Site, "answer", lambda *_: pytest.fail("computed without a charge"))
        assert attack.train("full", adapter).clause == "failed"


def test_joins_leave_one_copy_of_the_data(attack, tmp_path, monkeypatch):
    """Law: whatever the number of runs, data and anchors of the last one alone lie in scratch."""
    attack.start(max_rounds=99)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    for number in range(5):
        assert isinstance(attack.join(f"copy-{number}"), m.Joined)
    gc.collect()
    assert 1 <= len(list(tmp_path.glob("fw-arrow-*"))) <= 2
    monkeypatch.undo()
    attack.join("elsewhere")
    gc.collect()
    assert list(tmp_path.glob("fw-arrow-*")) == []
