"""Laws of the wire: whatever is planted in a silo, nothing of it is in any byte that leaves."""

import base64
import hashlib
import json
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from fnmatch import fnmatch
from pathlib import Path

import numpy as np
import pytest
from answer_envelope import answer_envelope
from planted import (
    CANARY,
    Federation,
    Wire,
    hits,
    needles_of,
    open_wire,
    plant,
    run_over,
)

from fedwinnow.client.boundary.disclosed_parts import PARTS, check_parts, leaves
from fedwinnow.client.boundary.guarded_site import GuardedSite
from fedwinnow.client.budget import ledger
from fedwinnow.client.budget.ledger_chain import read_chain
from fedwinnow.client.phases import table as answers
from fedwinnow.client.runs import tables
from fedwinnow.client.runs.site_run import SiteRun
from fedwinnow.curation.config.identity import run_id
from fedwinnow.curation.config.load_files import load_run, load_site
from fedwinnow.curation.config.strict_toml import canonical_json
from fedwinnow.curation.datatypes import Metrics
from fedwinnow.curation.errors import CurationError
from fedwinnow.curation.protocol import wire
from fedwinnow.curation.protocol.envelope import Envelope, sign
from fedwinnow.curation.protocol.header import Header
from fedwinnow.curation.protocol.keys import PrivateKey
from fedwinnow.curation.protocol.messages import Reply
from fedwinnow.curation.protocol.replies import (
    ClusterReply,
    Joined,
    JudgedAdapters,
    KeptReply,
    MetricsReply,
    PublicSignals,
    Refusal,
    SummaryReply,
    TrainedAdapter,
)
from fedwinnow.curation.protocol.requests import (
    JoinRequest,
    ProbeRequest,
    ScoreRequest,
    SelectRequest,
    TrainRequest,
)
from fedwinnow.simulations.datasets.toy_federation import SITES

pytestmark = pytest.mark.flower  # agents' boundaries, and half a minute for one run over them


@pytest.fixture(scope="module")
def federation() -> Iterator[Federation]:
    """A whole run over the boundaries of three silos with canaries."""
    folder = Path(tempfile.mkdtemp(prefix="fw-", dir="/tmp"))
    compared = 'scorer.comparison=["perplexity", "tracin", "committee", "llkd"]'
    changes = ["evaluation.own_holdout=0.4", "evaluation.generate=2", compared]
    changes += ["clusters.count=2", "clusters.iterations=3", "clusters.budget=0.9"]
    config = load_run(plant(folder), changes)
    ear = open_wire(folder, config)
    state = run_over(ear, config)
    yield Federation(folder, config, ear, state, needles_of(folder, config, state))
    ear.close()
    shutil.rmtree(folder)


def test_wire_holds_nothing_planted_in_a_silo(federation):
    """0 hits in every reply, envelope, frame and progress text of a whole run."""
    ear = federation.ear
    assert federation.state.phase == "done"
    assert len(ear.plain) == 3 * len(federation.state.records)
    assert len(federation.needles.runs) > 5_000
    assert len(federation.needles.single) > 300
    assert hits(federation.needles, ear.plain, ear.stream) == []


def test_wire_envelope_shows_no_byte_of_its_reply(federation):
    """A payload holds neither the kind nor any 16 bytes of the reply that it encrypts."""
    ear = federation.ear
    for plain, payload in zip(ear.plain, ear.encrypted[::4], strict=True):
        kind = type(wire.decode(plain)).__name__
        assert kind.encode() not in payload
        assert not any(plain[at : at + 16] in payload for at in range(0, len(plain) - 16, 16))


def test_wire_every_reply_that_left_stands_in_its_ledger(federation):
    """Line by line: the SHA-256 of the plain reply; the chain is whole; each head was told."""
    entered = []
    for site, boundary in federation.ear.boundaries.items():
        folder = Path(boundary.site.config.work)
        assert ledger.verify_chain(folder) == []
        entered += [entry["sha256"] for _, entry in ledger.read_chain(folder)]
        assert federation.ear.envelopes.ledgers[site] == boundary.ledger.head
    left = Counter(hashlib.sha256(plain).hexdigest() for plain in federation.ear.plain)
    assert left <= Counter(entered)


def test_wire_every_number_that_left_is_disclosed(federation):
    """Law: replies and ledgers of a whole run hold what ``site disclosure`` prints, and no more."""
    listed = {f"{part.reply.__name__}.{part.path}" for part in PARTS}
    seen = set()
    for reply in map(wire.decode, federation.ear.plain):
        check_parts(reply, federation.ear.boundaries[reply.site].site.config)
        seen |= {f"{type(reply).__name__}.{path}" for path, _ in leaves(reply)}
    assert {"SummaryReply.summary.counts", "MetricsReply.own.loss_sum"} <= seen <= listed
    for boundary in federation.ear.boundaries.values():
        for _, entry in read_chain(boundary.ledger.folder):
            assert all(any(fnmatch(name, one) for one in listed) for name in entry["arrays"])


def test_wire_adapter_that_is_passed_on_stands_so_in_the_ledger(federation):
    """The last warm-up adapter, which reviews, and those that members judge; no other line."""
    places, found = {("warm_up", 1), ("train", 1), ("train", 2)}, set()
    for boundary in federation.ear.boundaries.values():
        lines = [entry for _, entry in ledger.read_chain(Path(boundary.site.config.work))]
        marked = [line for line in lines if "passed_on" in line]
        assert {line["kind"] for line in marked} == {"TrainedAdapter"}
        assert {line["passed_on"] for line in marked} == {"members"}
        mine = {(line["phase"], line["round"]) for line in marked}
        assert mine <= places  # a site that keeps too few for a group sends no adapter in training
        found |= mine
    assert found == places


def test_wire_search_covers_judges_and_witnesses(federation):
    """Among what was searched are losses that judges tell and gradients of public anchors."""
    replies = [wire.decode(plain) for plain in federation.ear.plain]
    assert any(isinstance(reply, JudgedAdapters) for reply in replies)
    assert any(isinstance(r, TrainedAdapter) and r.gradient is not None for r in replies)


def test_wire_small_groups_leave_no_mean(federation):
    """Means over fewer samples than ``smallest_group`` are pooled over steps or withheld."""
    replies = [wire.decode(plain) for plain in federation.ear.plain]
    trained = [r for r in replies if isinstance(r, TrainedAdapter) and r.header.phase == "train"]
    steps, size = federation.config.training.steps, federation.config.training.batch_size
    assert trained
    assert all(len(reply.losses) <= steps * size // 6 for reply in trained)
    for reply in replies:
        if isinstance(reply, MetricsReply):
            assert reply.own.samples == 0 or reply.own.samples >= 6


def test_wire_sums_of_clusters_tell_of_no_sample(federation):
    """No sum of a cluster, and no difference of two, is a sample's standardised losses."""
    replies = [wire.decode(plain) for plain in federation.ear.plain]
    told = [reply for reply in replies if isinstance(reply, ClusterReply)]
    assert len(told) == 9
    assert any(sum(reply.counts) for reply in told)
    for site in SITES:
        mine = [reply for reply in told if reply.site == site]
        assert all(count == 0 or count >= 6 for reply in mine for count in reply.counts)
        own = load_site(federation.folder / site / "site.toml")
        folder = Path(own.work) / run_id(federation.config)
        points, _ = tables.read_trajectories(folder / "trajectories.parquet")
        rows = np.concatenate([reply.sums for reply in mine])
        apart = (rows[:, None] - np.concatenate([rows, np.zeros((1, 2))])[None]).reshape(-1, 2)
        found = np.abs(apart[:, None] - points[None]).max(axis=2) < 1e-9
        assert not found.any()


def secret_of(federation: Federation, site: str = "north") -> tuple[str, str, np.ndarray]:
    """A canary, an id and the scores of a silo."""
    own = load_site(federation.folder / site / "site.toml")
    work = Path(own.work) / run_id(federation.config)
    name = federation.config.scorer.name
    ids, _, scores = tables.read_scores(work / "scores.parquet", name)
    known = np.array([s for s in scores if s in federation.needles.single])
    assert len(known) > 4
    return CANARY.format(site=site), ids[0], known


def first(federation: Federation, kind: type) -> Reply:
    """The first reply of a kind."""
    return next(r for r in map(wire.decode, federation.ear.plain) if isinstance(r, kind))


LEAKS: dict[str, tuple[type, Callable]] = {
    "text in a version": (
        Joined,
        lambda r, s: replace(r, card=replace(r.card, versions={"torch": s[0]})),
    ),
    "id in base64": (
        KeptReply,
        lambda r, s: replace(r, kept={base64.b64encode(s[1].encode()).decode(): 1}),
    ),
    "id in a row of public signals": (
        PublicSignals,
        lambda r, s: replace(r, table=replace(r.table, ids=(s[1], *r.table.ids[1:]))),
    ),
    "text in a refusal": (
        KeptReply,
        lambda r, s: Refusal(
            header=r.header, site=r.site, clause="failed", reason=f"row {s[0]!r} bad"
        ),
    ),
    "score as a loss": (TrainedAdapter, lambda r, s: replace(r, losses=(float(s[2][0]),))),
    "score as a rounded loss": (
        TrainedAdapter,
        lambda r, s: replace(r, losses=(round(float(s[2][0]), 6),)),
    ),
    "score as a forecast": (
        SummaryReply,
        lambda r, s: replace(r, forecast={"auroc": float(np.float32(s[2][1]))}),
    ),
    "one sample's loss as a sum": (
        MetricsReply,
        lambda r, s: replace(r, own=Metrics(loss_sum=float(s[2][2]), samples=1)),
    ),
    "score among public scores": (
        SummaryReply,
        lambda r, s: replace(r, public_scores=np.append(r.public_scores, s[2][3])),
    ),
    "score as float16 in a float32 column": (
        PublicSignals,
        lambda r, s: replace(r, table=with_loss(r.table, np.float16(s[2][0]))),
    ),
    "score as a sum of a cluster": (
        ClusterReply,
        lambda r, s: replace(r, sums=np.full_like(r.sums, s[2][2])),
    ),
    "scores as float32, big end first": (
        SummaryReply,
        lambda r, s: replace(r, public_scores=packed(s[2][:4].astype(">f4"))),
    ),
    "scores as float16, sorted": (
        SummaryReply,
        lambda r, s: replace(r, public_scores=packed(np.sort(s[2])[:4].astype("<f2"))),
    ),
}


def with_loss(table, value):
    """A table with one value in place of the first row's loss."""
    loss = np.concatenate([np.array([value], np.float32), table.columns["loss"][1:]])
    return replace(table, columns={**table.columns, "loss": loss})


def packed(values: np.ndarray) -> np.ndarray:
    """Bytes of other numbers that call themselves float64."""
    return np.frombuffer(values.tobytes(), np.float64).copy()


@pytest.mark.parametrize("leak", LEAKS)
def test_wire_search_finds_a_leak(federation, leak):
    """The search is able to fail: each kind of leak in an honest reply is found."""
    kind, change = LEAKS[leak]
    reply = first(federation, kind)
    honest = wire.encode(reply)
    assert hits(federation.needles, [honest], honest) == []
    leaking = wire.encode(change(reply, secret_of(federation)))
    assert hits(federation.needles, [leaking], leaking)


def test_wire_of_a_leaking_site_is_caught(federation, monkeypatch):
    """Scores in a forecast pass every check of the boundary; the search finds them."""
    boundary = federation.ear.boundaries["north"]
    ear = Wire(boundaries={"north": boundary}, envelopes=federation.ear.envelopes)
    (request,) = {id(r): r for r in federation.ear.asked if isinstance(r, ScoreRequest)}.values()
    work = boundary.site.run_of(request.header.run)
    (stored,) = work.folder.glob("replies/score-*")
    honest, score = stored.read_bytes(), answers._ANSWERS[ScoreRequest]

    def leaking(run: SiteRun, request: ScoreRequest) -> Reply:
        reply = score(run, request)
        _, _, scores = tables.read_scores(run.folder / "scores.parquet", run.terms.scorer.name)
        return replace(reply, forecast={f"{i}": float(s) for i, s in enumerate(scores)})

    monkeypatch.setitem(answers._ANSWERS, ScoreRequest, leaking)
    stored.unlink()
    try:
        assert isinstance(ear.ask(request, "north"), SummaryReply)
    finally:
        stored.write_bytes(honest)
    assert any("decimal" in hit for hit in hits(federation.needles, ear.plain, ear.stream))


def refused(federation: Federation, ear: Wire) -> list[Refusal]:
    """Refusals that a coordinator can provoke at a joined site."""
    state, config = federation.state, federation.config
    adapter, run = state.finals["curated"], run_id(config)
    a, b = (
        {k: v.repeat(*by) for k, v in part.items()}
        for part, by in ((adapter.a, (99, 1)), (adapter.b, (1, 99)))
    )
    wide = replace(adapter, a=a, b=b)
    arms = replace(config.terms(), study=replace(config.terms().study, arms=("curated", "random")))

    def header(phase: str, name: str = run, **more) -> Header:
        return Header(run=name, phase=phase, **more)

    asked = [
        ProbeRequest(header=header("probe"), adapter=wide),
        SelectRequest(header=header("select"), threshold=float("-inf")),
        SelectRequest(header=header("select"), threshold=0.123456),
        ScoreRequest(header=header("score", "stranger"), tables=(), kinds=(), parents=()),
        ScoreRequest(header=header("score"), tables=(), kinds=(), parents=()),
        JoinRequest(header=header("join", "second"), terms=canonical_json(arms)),
        JoinRequest(header=header("join", "../../third"), terms=canonical_json(config.terms())),
        JoinRequest(header=header("join", "fourth"), terms="{"),
        TrainRequest(header=header("train", arm="curated", round=99), adapter=adapter,
                     step_offset=0, total_steps=4, sites=SITES),
    ]  # fmt: skip
    return [ear.ask(request, "north") for request in asked]


def test_wire_refusals_hold_nothing_planted(federation):
    """Whatever a coordinator asks amiss, the no that it gets names a clause and nothing else."""
    boundary = federation.ear.boundaries["north"]
    ear = Wire(boundaries={"north": boundary}, envelopes=federation.ear.envelopes)
    replies = refused(federation, ear)
    assert all(isinstance(reply, Refusal) for reply in replies), replies
    assert {"policy.max_rank", "policy.arms", "policy.summaries"} <= {r.clause for r in replies}
    assert hits(federation.needles, ear.plain, ear.stream) == []


def test_wire_failures_hold_nothing_planted(federation, monkeypatch):
    """Broken data and an exception whose text is a canary reach the server as fixed words."""
    canary = CANARY.format(site="north")
    broken = federation.folder / "broken-of-north-quetzal.jsonl"
    broken.write_text(
        json.dumps({"prompt": [canary], "response": canary, "domain": "", "truth": ""})
    )
    own = load_site(federation.folder / "north" / "site.toml")
    site = replace(own.site, data=str(broken))
    terms = canonical_json(federation.config.terms())

    def failing(*_: object) -> Reply:
        raise ValueError(canary)

    envelopes = federation.ear.envelopes
    key = federation.ear.boundaries["north"].key
    for work, changes in (("w1", {"site": site}), ("w2", {})):
        boundary = GuardedSite.open(replace(own, work=str(federation.folder / work), **changes))
        assert boundary.key == key
        ear = Wire(boundaries={"north": boundary}, envelopes=envelopes)
        monkeypatch.setitem(answers._ANSWERS, JoinRequest, failing)
        reply = ear.ask(JoinRequest(header=Header(run="r", phase="join"), terms=terms), "north")
        assert isinstance(reply, Refusal)
        assert reply.clause == "failed"
        assert hits(federation.needles, ear.plain, ear.stream) == []
        assert b"quetzal" not in ear.stream
        boundary.ledger.close()


def test_wire_stranger_gets_no_byte(federation):
    """A request signed by another key raises before anything is answered or entered."""
    boundary = federation.ear.boundaries["north"]
    head, request = (
        boundary.ledger.head,
        JoinRequest(header=Header(run="r", phase="join"), terms="{}"),
    )
    made: Envelope = sign(PrivateKey.new(), wire.encode(request), site="north", run="r",
                          phase="join", sequence=2**62)  # fmt: skip
    with pytest.raises(CurationError):
        answer_envelope(made, boundary)
    assert boundary.ledger.head == head
