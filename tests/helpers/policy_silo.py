"""A silo without a model, and requests and replies that are in its plan: what policy tests ask."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from fedwinnow.client.boundary.policy import Policy
from fedwinnow.client.budget.ledger import Entry, Ledger
from fedwinnow.client.budget.released_datasets import ReleasedDatasets
from fedwinnow.client.runs import tables
from fedwinnow.client.runs.site_run import SiteRun
from fedwinnow.curation.config.run import RunTerms
from fedwinnow.curation.config.site import PolicySection, SiteConfig, SiteSection
from fedwinnow.curation.config.strict_toml import canonical_json, parse
from fedwinnow.curation.datatypes import Adapter, Metrics, ScoreSummary, Selection
from fedwinnow.curation.errors import PluginError, RefusalError
from fedwinnow.curation.protocol import messages as m
from fedwinnow.curation.protocol import wire
from fedwinnow.strategies.run_plugins import RunPlugins

OPEN = {"allow_individual_updates": True, "smallest_group": 8, "min_change": 5}
PLAIN = {
    "run": {"trajectory": "global"},
    "warm_up": {"rounds": 2, "steps": 4},
    "training": {"rounds": 3, "steps": 5, "batch_size": 8, "sample_grad_norm": 1.0},
    "adapter": {"rank": 4},
    "evaluation": {"generate": 2},
}


def made_of(terms):
    """The plug-ins of terms; None where they cannot be made: a policy refuses such terms first."""
    try:
        return RunPlugins.of(terms)
    except PluginError:
        return None


def adapter_of(rank=4, width=6):
    """An adapter of one layer."""
    factors = {"layer": torch.ones(rank, width)}, {"layer": torch.ones(width, rank)}
    return Adapter(a=factors[0], b=factors[1], scales={"layer": 2.0}, base="base")


class Silo:
    """One site's policy, ledger and runs, without a model."""

    def __init__(self, folder, **section) -> None:
        self.folder = folder
        self.ledger = Ledger.open(folder)
        self.rounds_to = section.pop("round_counts_to", 1)
        self.enact(**section)

    def enact(self, **section):
        """Write the policy anew, as after a restart of the agent."""
        made = PolicySection(**OPEN | section)
        known = ReleasedDatasets(folder=self.folder / "datasets")
        self.policy = Policy(section=made, known=known)

    def work(self, name="run", /, ids=range(40), held=(), anchors="public", **terms):
        """A run at this site; ``ids`` are its samples, ``held`` its own hold-out."""
        folder = self.folder / name
        folder.mkdir(exist_ok=True)
        pool = SimpleNamespace(
            samples=Samples(ids),
            own_holdout=Samples(held),
            rows=SimpleNamespace(samples=[SimpleNamespace(id=f"anchor-{i}") for i in range(40)]),
            anchors_hash=anchors,
        )
        site = SiteSection(name="law", data="d", round_counts_to=self.rounds_to)
        agreed = terms_of(**terms)
        return SiteRun(
            config=SiteConfig(site=site), terms=agreed, folder=folder, data=pool,
            model=None, cache=None, plugins=made_of(agreed),
        )  # fmt: skip

    def ask(self, request, work=None, digest=""):
        """What the boundary does before anything is computed; the charge is on the disk then."""
        digest, joining = digest or digest_of(request), isinstance(request, m.JoinRequest)
        self.policy.before(request, None if joining else work, self.ledger, digest)
        if work is not None:
            self.policy.charge(request, work, self.ledger, digest=digest, recipient="f")

    def give(self, request, reply, work):
        """A whole exchange: asked, released, entered."""
        self.ask(request, work)
        reply = self.policy.release(reply, work, self.ledger)
        entry = Entry.of(
            reply, wire.encode(reply), request=digest_of(request), recipient="f",
            data=self.policy.budget.data_behind(reply, work), anchors=work.data.anchors_hash,
        )  # fmt: skip
        self.ledger.append(entry)
        return reply


class Samples(list):
    """A silo's samples: their ids are all that the policy looks at."""

    @property
    def ids(self):
        """Ids in data order."""
        return tuple(f"sample-{i}" for i in self)


def terms_of(**changes):
    """The plain terms with whole sections replaced."""
    tree = {name: dict(section) for name, section in PLAIN.items()}
    for name, section in changes.items():
        tree[name] = tree.get(name, {}) | section
    return parse(tree, RunTerms)


def head(phase, number=0, arm="", run="run"):
    """A header."""
    return m.Header(run=run, phase=phase, round=number, arm=arm)


def digest_of(request):
    """What stands for a request: any difference in it is another one."""
    return repr(request)


def join(run="run", /, **changes):
    """A join request."""
    return m.JoinRequest(header=head("join", run=run), terms=canonical_json(terms_of(**changes)))


def train(number=1, phase="train", run="run", rank=4, **changes):
    """A training request that is in the plain plan, but for what is changed."""
    rounds, steps = (2, 4) if phase == "warm_up" else (3, 5)
    said = {"step_offset": (number - 1) * steps, "total_steps": rounds * steps, "sites": ("law",)}
    arm = changes.pop("arm", "" if phase == "warm_up" else "curated")
    header = head(phase, number, arm, run)
    return m.TrainRequest(header=header, adapter=adapter_of(rank), **said | changes)


def trained(header, losses=(1.0,), samples=40, rank=4):
    """A site's update."""
    return m.TrainedAdapter(
        header=header, site="law", samples=samples, adapter=adapter_of(rank),
        losses=losses, learning_rate=0.5,
    )  # fmt: skip


def score(run="run", kinds=("clean",)):
    """A scoring request; other kinds make it another one."""
    return m.ScoreRequest(
        header=head("score", run=run), tables=(), kinds=kinds, parents=("p",) * len(kinds)
    )


def summary(run="run"):
    """A histogram."""
    return m.SummaryReply(
        header=head("score", run=run), site="law",
        summary=ScoreSummary(edges=np.array([0.0]), counts=np.array([1.0, 2.0])),
        public_scores=np.zeros(1), forecast={}, unscored=0,
    )  # fmt: skip


def select(threshold=0.5, run="run", number=0):
    """A selection request."""
    return m.SelectRequest(header=head("select", number, run=run), threshold=threshold)


def kept(run="run"):
    """A kept count."""
    return m.KeptReply(header=head("select", run=run), site="law", kept={"curated": 3})


def evaluate(number=0, arm="", run="run", rank=4, generate=0):
    """An evaluation request."""
    header = head("evaluate", number, arm, run)
    return m.EvaluateRequest(header=header, adapter=adapter_of(rank), generate=generate)


def metrics(header, samples=20):
    """Sums over the own hold-out."""
    own = Metrics(loss_sum=2.0 * samples, samples=samples)
    return m.MetricsReply(header=header, site="law", public_losses=np.ones(2), own=own)


def joined(anchors="public", rank=4, run="run"):
    """A site's card."""
    header = head("join", run=run)
    card = m.SiteCard(
        header=header, site="law", samples=40, base="base", anchors=anchors, versions={}
    )
    return m.Joined(header=header, site="law", card=card, adapter=adapter_of(rank))


def refused(clause, call, *args):
    """The words of a refusal with this clause."""
    with pytest.raises(RefusalError) as caught:
        call(*args)
    assert caught.value.clause == clause
    assert "allows" in str(caught.value) or "say" in str(caught.value)
    return str(caught.value)


def write_kept(work, count):
    """A selection of the first ``count`` samples."""
    ids = work.data.samples.ids
    passes = tuple(i < count for i in range(len(ids)))
    reasons = tuple("" if passed else "below" for passed in passes)
    chosen = Selection(ids=ids, kept=passes, reasons=reasons)
    tables.write_selection(work.folder / "selection.parquet", {"curated": chosen})
