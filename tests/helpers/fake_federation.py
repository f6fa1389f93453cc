"""Sites without a model: seeded replies to every request, for tests of the fold."""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache

import numpy as np
import torch

from fedwinnow.curation.config.run import RunConfig
from fedwinnow.curation.config.scoring import ClustersSection, PluginSection, RunSection
from fedwinnow.curation.config.training import (
    EvaluationSection,
    StudySection,
    TrainingSection,
    WarmUpSection,
)
from fedwinnow.curation.datatypes import Adapter, Metrics, ScoreSummary, SignalTable
from fedwinnow.curation.protocol import messages as m
from fedwinnow.curation.seeds import derive_seed
from fedwinnow.server.run.fold import absorb, initial_state, next_request
from fedwinnow.server.state import RunState
from fedwinnow.server.transport.interface import Delivery

PHASES = ("join", "probe", "warm_up", "measure", "score", "select", "evaluate", "train", "close")
SITES = ("alpha", "beta", "gamma")
KINDS = ("clean", "swap", "clean", "cut", "clean", "noise")
SCORES = np.array([0.9, 0.1, 0.8, 0.3, 0.7, 0.2])
EDGES = np.array([0.25, 0.5, 0.75])
Alter = Callable[[str, m.Request, m.Reply], m.Reply]


def make_config(output="runs", **changes) -> RunConfig:
    """A run of two warm-up rounds and three training rounds, evaluated every second one."""
    config = RunConfig(
        run=RunSection(name="fake", output=str(output), trajectory="global"),
        threshold=PluginSection(name="keep_all"),
        warm_up=WarmUpSection(rounds=2, steps=4),
        training=TrainingSection(rounds=3, steps=5),
        evaluation=EvaluationSection(every=2),
        study=StudySection(arms=("curated", "keep_all")),
    )
    return replace(config, **changes)


def with_clusters(**changes) -> RunConfig:
    """The same run with three exchanges of four clusters, half of whose samples are kept."""
    return make_config(clusters=ClustersSection(count=4, iterations=3, budget=0.5), **changes)


def initial() -> Adapter:
    """The seeded adapter that every site makes alike: B = 0."""
    generator = torch.Generator().manual_seed(7)
    names = ("model.layers.0.q_proj", "model.layers.1.v_proj")
    return Adapter(
        base="base",
        a={name: torch.randn(2, 5, generator=generator) for name in names},
        b={name: torch.zeros(4, 2) for name in names},
        scales=dict.fromkeys(names, 2.0),
    )


def nudged(adapter: Adapter, *names: object, by: float = 0.1) -> Adapter:
    """An adapter moved by seeded noise."""
    generator = torch.Generator().manual_seed(derive_seed(0, *names))
    move = lambda factor: factor + by * torch.randn(factor.shape, generator=generator)  # noqa: E731 - used twice, here
    return replace(
        adapter,
        a={name: move(factor) for name, factor in adapter.a.items()},
        b={name: move(factor) for name, factor in adapter.b.items()},
    )


def public_table(adapter_hash: str, checkpoint: int, learning_rate: float) -> SignalTable:
    """Public rows: a function of adapter and checkpoint only."""
    draw = np.random.default_rng(derive_seed(0, adapter_hash, checkpoint))
    columns = {"loss": draw.normal(size=6).astype(np.float32)}
    if checkpoint:
        columns["dot"] = draw.normal(size=(6, 2)).astype(np.float32)
    return SignalTable(
        ids=tuple(f"public-{i}" for i in range(6)),
        domains=("law", "law", "law", "finance", "finance", "finance"),
        checkpoint=checkpoint,
        status=np.zeros(6, dtype=np.int8),
        columns=columns,
        references=("finance", "law") if checkpoint else (),
        reference_gram=np.eye(2) if checkpoint else np.zeros((0, 0)),
        learning_rate=learning_rate,
    )


@dataclass
class FakeSites:
    """Answers as three honest sites would; ``alter`` may change a reply."""

    kept: Mapping[str, Mapping[str, int]] = field(
        default_factory=lambda: {
            "curated": {"alpha": 6, "beta": 3, "gamma": 1},
            "keep_all": dict.fromkeys(SITES, 8),
            "random": {"alpha": 6, "beta": 3, "gamma": 1},
        }
    )
    harmful: tuple[str, ...] = ()
    """Sites whose adapters the others find to raise the loss of public anchors."""
    alter: Alter = lambda _site, _request, reply: reply

    def answer(self, site: str, request: m.Request) -> m.Reply:
        """The site's reply."""
        return self.alter(site, request, self._honest(site, request))

    def _honest(self, site: str, request: m.Request) -> m.Reply:  # noqa: PLR0911 - one a request
        header = request.header
        if isinstance(request, m.JoinRequest):
            card = m.SiteCard(
                header=header, site=site, samples=8, base="base", anchors="anchors", versions={}
            )
            return m.Joined(header=header, site=site, card=card, adapter=initial())
        if isinstance(request, m.ProbeRequest | m.MeasureRequest):
            rate, t = getattr(request, "learning_rate", 0.0), getattr(request, "checkpoint", 0)
            table = public_table(header.adapter, t, rate)
            parents = tuple(f"parent-{i // 2}" for i in range(6))
            return m.PublicSignals(
                header=header, site=site, table=table, kinds=KINDS, parents=parents
            )
        if isinstance(request, m.TrainRequest):
            return self._trained(site, request)
        if isinstance(request, m.JudgeRequest):
            judged = sorted(set(request.candidates) - {site})
            worse = {name: 10.0 if name in self.harmful else 0.9 for name in judged}
            return m.JudgedAdapters(
                header=header,
                site=site,
                before=np.ones(3),
                losses={name: np.array([1.0, 1.01, 0.99]) * worse[name] for name in judged},
                domains=("law", "law", "law"),
            )
        if isinstance(request, m.ScoreRequest):
            counts = np.random.default_rng(derive_seed(0, site)).integers(0, 3, size=4)
            return m.SummaryReply(
                header=header,
                site=site,
                summary=ScoreSummary(edges=EDGES, counts=counts.astype(np.float64)),
                public_scores=SCORES,
                forecast={"auroc": 1.0},
                unscored=0,
            )
        if isinstance(request, m.ClusterRequest):
            draw = np.random.default_rng(derive_seed(0, site, header.round))
            counts = draw.integers(0, 3, size=len(request.centroids))
            sums = counts[:, None] * draw.normal(size=request.centroids.shape)
            return m.ClusterReply(
                header=header, site=site, counts=tuple(counts.tolist()), sums=sums
            )
        if isinstance(request, m.SelectRequest | m.QuotaRequest):
            kept = {arm: self.kept[arm][site] for arm in self.arms}
            return m.KeptReply(header=header, site=site, kept=kept)
        if isinstance(request, m.EvaluateRequest):
            value = int(hashlib.sha256(header.adapter.encode()).hexdigest()[:6], 16) / 2**24
            shown = tuple(f"prompt {i}" for i in range(request.generate))
            return m.MetricsReply(
                header=header,
                site=site,
                public_losses=np.array([value, 2 * value, 1.0]),
                own=Metrics(loss_sum=value, samples=2),
                prompts=shown,
                references=shown,
                generations=shown,
            )
        return m.Receipt(header=header, site=site)

    arms: tuple[str, ...] = ("curated", "keep_all")

    def _trained(self, site: str, request: m.TrainRequest) -> m.TrainedAdapter:
        header = request.header
        samples = self.kept[header.arm][site] if header.arm else 8
        adapter = nudged(request.adapter, site, header.phase, header.round, header.arm)
        if request.frozen:
            adapter = replace(adapter, **{request.frozen: getattr(request.adapter, request.frozen)})
        losses = tuple(float(x) for x in np.linspace(2, 1, 3))
        return m.TrainedAdapter(
            header=header,
            site=site,
            samples=samples,
            adapter=adapter if samples else None,
            losses=losses if samples else (),
            learning_rate=1e-3 if samples else 0.0,
        )


@dataclass
class FakeTransport:
    """Carries requests to fake sites; ``silent`` maps a phase to the sites that say nothing."""

    sites: FakeSites = field(default_factory=FakeSites)
    silent: Mapping[str, Sequence[str]] = field(default_factory=dict)
    asked: list[m.Request] = field(default_factory=list)

    caught_up: list[tuple[str, m.Request]] = field(default_factory=list)

    def exchange(
        self,
        request: m.Request,
        sites: Sequence[str],
        *,
        deadline: float,
        earlier: Mapping[str, Sequence[m.Request]] | None = None,
    ) -> Iterator[Delivery]:
        """Every site in turn; one that was away answers what it missed before."""
        self.asked.append(request)
        for site in sites or SITES:
            if site in self.silent.get(request.header.phase, ()):
                why = f"no answer within {deadline:.0f} s"
                yield Delivery(site=site, reply=None, missing=why, bytes_down=10)
                continue
            for missed in (earlier or {}).get(site, ()):
                self.caught_up.append((site, missed))
                reply = self.sites.answer(site, missed)
                yield Delivery(site=site, reply=reply, request=missed)
                if isinstance(reply, m.Refusal):
                    break
            else:
                reply = self.sites.answer(site, request)
                yield Delivery(site=site, reply=reply, bytes_down=10, bytes_up=20)


def replies_to(request: m.Request, sites: FakeSites | None = None) -> dict[str, m.Reply]:
    """Site → reply, in order of name."""
    fake = sites or FakeSites()
    return {site: fake.answer(site, request) for site in SITES}


def run_until(config: RunConfig, phase: str, sites: FakeSites | None = None) -> RunState:
    """The state whose next request is of this phase (the first one of it)."""
    return _fold(initial_state(config, "fake-run"), phase, sites)


@cache
def at(phase: str) -> RunState:
    """As :func:`run_until` with the default configuration; folded once."""
    if phase == "cluster":  # only runs with clusters have it
        return run_until(with_clusters(), phase)
    earlier = PHASES[: PHASES.index(phase)]
    return _fold(
        at(earlier[-1]) if earlier else initial_state(make_config(), "fake-run"), phase, None
    )


def _fold(state: RunState, phase: str, sites: FakeSites | None) -> RunState:
    while state.phase != phase:
        request = next_request(state)
        assert request is not None
        state = absorb(state, replies_to(request, sites))
    return state
