"""Fuzz of a hostile coordinator: two silos that differ in one sample answer it alike.

What may differ is what was released on purpose: counts by one step, a histogram by two groups, an
own hold-out's mean by one step of its grid, and the numbers of a trained adapter.
``pytest -m attacks tests/attacks --hypothesis-profile=thorough`` looks further.
"""

import json
from dataclasses import replace
from itertools import count

import numpy as np
import pytest
import torch
from answer_envelope import answer_envelope
from hypothesis import given, settings
from hypothesis import strategies as st
from toy_deployment_files import write_toy_deployment

from fedwinnow.client.boundary.guarded_site import GuardedSite
from fedwinnow.client.runs.process_cache import ProcessCache
from fedwinnow.curation.adapters.checks import adapter_hash
from fedwinnow.curation.config.load_files import load_run, load_site
from fedwinnow.curation.config.strict_toml import canonical_json
from fedwinnow.curation.protocol import messages as m
from fedwinnow.curation.protocol import wire
from fedwinnow.server.transport.coordinator_envelopes import CoordinatorEnvelopes
from fedwinnow.simulations.datasets.toy_federation import toy_rows

pytestmark = pytest.mark.attacks

SAMPLES, STEP, GROUP = 48, 10, 8
EXAMPLES = settings().max_examples // 8
"""Few by default, as each asks two real sites; sixty under the profile "thorough"."""
STRANGE = (
    {"prompt": "zzz ~~~ \x7f", "response": "Q" * 90, "domain": "d", "truth": "clean"},
    {"prompt": "?", "response": "", "domain": "d", "truth": "clean"},
    {"prompt": "a" * 400, "response": "b" * 400, "domain": "d", "truth": "wrong"},
)
"""Rows that stand out: rare letters, no response, more tokens than fit."""


class Silos:
    """Two silos of the same rows but one, and a coordinator that asks both the same."""

    def __init__(self, folder) -> None:
        self.run = load_run(write_toy_deployment(folder / "toy", samples=SAMPLES))
        self.file, self.folder = folder / "toy" / "north" / "site.toml", folder
        self.envelopes = CoordinatorEnvelopes.open(self.run, folder / "coordinator")
        self.cache, self.numbers = ProcessCache(), count()
        self.sites = []

    def open(self, other):
        """Open both anew; the second holds another row in the place of the first one."""
        self.close()
        config, place = load_site(self.file), self.folder / str(next(self.numbers))
        rows = list(toy_rows(SAMPLES, 7, wrong=0.3))
        for name, held in (("one", rows), ("two", [other, *rows[1:]])):
            own = place / name
            own.mkdir(parents=True)
            text = "".join(json.dumps(row) + "\n" for row in held)
            (own / "data.jsonl").write_text(text, encoding="utf-8")
            policy = replace(config.policy, smallest_group=GROUP, min_change=1, max_rounds=99,
                             summaries=99, max_sample_grad_norm=1.0)  # fmt: skip
            section = replace(config.site, data=str(own / "data.jsonl"), round_counts_to=STEP,
                              smallest_cell=8)  # fmt: skip
            made = replace(config, policy=policy, site=section, work=str(own / "work"))
            self.sites.append(GuardedSite.open(made, cache=self.cache))

    def close(self):
        """Let the ledgers go."""
        for site in self.sites:
            site.ledger.close()
        self.sites = []

    def ask(self, request):
        """Ask both the same; return both answers, without the references of refusals."""
        found = []
        for site in self.sites:
            sent = self.envelopes.envelope(request, "north")
            reply = self.envelopes.reply(answer_envelope(sent, site), self.envelopes.sent(sent))
            known = isinstance(reply, m.Refusal)
            found.append(replace(reply, reference="") if known else reply)
        return found


@pytest.fixture(scope="module")
def silos(tmp_path_factory):
    one = Silos(tmp_path_factory.mktemp("fw"))
    yield one
    one.close()


def bytes_without(reply, **released):
    """The reply's bytes with its released numbers set alike."""
    return wire.encode(replace(reply, **released))


def check_alike(one, two):
    """Whether two replies differ in nothing but released numbers, and in those by little."""
    assert type(one) is type(two), (one, two)
    released = {}
    if isinstance(one, m.Joined):
        assert abs(one.card.samples - two.card.samples) <= STEP
        released = {"card": one.card}
        assert replace(two.card, samples=one.card.samples) == one.card
    elif isinstance(one, m.SummaryReply):
        assert abs(one.unscored - two.unscored) <= STEP
        assert abs(one.summary.total - two.summary.total) <= 4 * STEP
        assert np.array_equal(one.summary.edges, two.summary.edges)
        released = {"summary": one.summary, "unscored": one.unscored}
    elif isinstance(one, m.KeptReply):
        assert all(abs(one.kept[arm] - two.kept[arm]) <= STEP for arm in one.kept)
        released = {"kept": one.kept}
    elif isinstance(one, m.TrainedAdapter):
        assert np.isfinite([*one.losses, *two.losses]).all()
        released = {"samples": 0, "adapter": None, "losses": (), "learning_rate": 0.0}
    elif isinstance(one, m.MetricsReply):
        assert abs(one.own.samples - two.own.samples) <= STEP
        released = {"own": one.own}
    assert bytes_without(one, **released) == bytes_without(two, **released), (one, two)


def check_trained(one, two, kept):
    """Whether a silo trains follows from the count that it told when it selected."""
    check_alike(one, two)
    alike = len({tuple(reply.kept.values()) for reply in kept if hasattr(reply, "kept")}) < 2
    if alike and isinstance(one, m.TrainedAdapter):
        assert (one.adapter is None, len(one.losses)) == (two.adapter is None, len(two.losses))
        assert abs(one.samples - two.samples) <= STEP


scales = st.sampled_from([0.0, 1.0, 1e3, 1e20, 1e30, 3e38])


@settings(max_examples=EXAMPLES)
@given(
    other=st.sampled_from([*STRANGE, *toy_rows(6, 99, wrong=0.5)]),
    a=scales,
    b=scales,
    share=st.sampled_from([0.0, 0.3, 0.5]),
    threshold=st.sampled_from([float("-inf"), float("inf"), None]),
    batch=st.sampled_from([1, 4, 8, 16]),
)
def test_a_coordinator_learns_of_no_sample_beyond_what_is_released(
    silos, other, a, b, share, threshold, batch
):
    """Law: the same questions to two silos that differ in one sample get the same answers."""
    silos.open(other)
    agreed = silos.run.terms()
    training = replace(
        agreed.training, rounds=1, steps=2, batch_size=batch, sample_grad_norm=1.0,
        learning_rate=1e-3,
    )  # fmt: skip
    agreed = replace(
        agreed,
        run=replace(agreed.run, trajectory="none"),
        training=training,
        scorer=replace(agreed.scorer, name="perplexity"),
        evaluation=replace(agreed.evaluation, own_holdout=share, generate=0),
    )
    header = m.Header(run="r", phase="join")
    joined = silos.ask(m.JoinRequest(header=header, terms=canonical_json(agreed)))
    check_alike(*joined)
    if isinstance(joined[0], m.Refusal):
        assert batch * training.accumulation < GROUP
        return
    first = joined[0].adapter
    hostile = replace(
        first,
        a={name: factor.sign() * a for name, factor in first.a.items()},
        b={name: torch.full_like(factor, b) for name, factor in first.b.items()},
    )
    key = adapter_hash(hostile)
    probed = silos.ask(
        m.ProbeRequest(header=replace(header, phase="probe", adapter=key), adapter=hostile)
    )
    check_alike(*probed)
    public = probed[0]
    if isinstance(public, m.PublicSignals):
        scored = silos.ask(
            m.ScoreRequest(header=replace(header, phase="score"), tables=(public.table,),
                           kinds=public.kinds, parents=public.parents)
        )  # fmt: skip
        check_alike(*scored)
        edges = scored[0].summary.edges if isinstance(scored[0], m.SummaryReply) else [0.0]
        cut = float(edges[len(edges) // 2]) if threshold is None else threshold
        kept = silos.ask(m.SelectRequest(header=replace(header, phase="select"), threshold=cut))
        check_alike(*kept)
        trains = replace(header, phase="train", round=1, arm="curated", adapter=key)
        trained = silos.ask(
            m.TrainRequest(
                header=trains, adapter=hostile, step_offset=0, total_steps=2, sites=("north",)
            )
        )
        check_trained(*trained, kept)
    evaluates = replace(header, phase="evaluate", adapter=key)
    check_alike(*silos.ask(m.EvaluateRequest(header=evaluates, adapter=hostile, generate=0)))
