"""Laws of reviews: exact under each adapter, own adapter aside, named refusals, planted errors."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from fedwinnow.client.runs import tables
from fedwinnow.client.runs.process_cache import ProcessCache
from fedwinnow.client.runs.review_queue import read_questions
from fedwinnow.client.signals import reviewers as reviewing
from fedwinnow.client.signals.reviewers import check_reviewers
from fedwinnow.client.site import Site
from fedwinnow.curation.adapters.checks import adapter_hash
from fedwinnow.curation.config.load_files import load_scenario, site_configs
from fedwinnow.curation.config.run import RunConfig
from fedwinnow.curation.datatypes import Adapter
from fedwinnow.curation.errors import (
    DataError,
    IncompatibleAdapterError,
    NonFiniteError,
    PluginError,
    ProtocolError,
)
from fedwinnow.curation.model.lora_model import get_adapter, set_adapter
from fedwinnow.curation.model.pretrained import encode
from fedwinnow.curation.model.token_losses import collate
from fedwinnow.curation.protocol import messages as m
from fedwinnow.curation.scores.ranking_metrics import auroc
from fedwinnow.curation.scores.selection import QUEUED
from fedwinnow.curation.seeds import derive_seed
from fedwinnow.server.run.fold import absorb, initial_state, next_request
from fedwinnow.server.run.preflight import check_config
from fedwinnow.simulations.datasets.toy_federation import SITES, toy_rows, write_toy_scenario

RUN = "toy-run"
COMMITTEE = (
    "scorer.name=committee",
    "scorer.settings.doubtful=0.3",
    "training.rounds=1",
    "warm_up.steps=3",
    "warm_up.learning_rate=0.05",
    "threshold.name=keep_all",
    "threshold.settings={}",
)


@pytest.fixture(scope="module")
def scenario(tmp_path_factory) -> Path:
    """A toy federation of three silos."""
    return write_toy_scenario(tmp_path_factory.mktemp("reviews"), samples=8)


def config_of(scenario: Path, *overrides: str) -> RunConfig:
    """The toy run with a committee."""
    return load_scenario(scenario, (*COMMITTEE, *overrides))


class Heard:
    """A finished run of three sites: what was asked, and what each site kept."""

    def __init__(self, config: RunConfig, folder: Path) -> None:
        cache = ProcessCache()
        self.config = config
        self.sites = {
            own.site.name: Site(config=own, cache=cache)
            for own in site_configs(config, str(folder))
        }
        self.asked, self.replies = [], []
        state = initial_state(config, RUN)
        while (request := next_request(state)) is not None:
            replies = {name: site.answer(request) for name, site in self.sites.items()}
            self.asked.append(request)
            self.replies.append(replies)
            state = absorb(state, replies)
        self.state = state

    def one(self, kind):
        """The only request of a class."""
        (found,) = (request for request in self.asked if isinstance(request, kind))
        return found

    def folder(self, site: str) -> Path:
        """Where a site keeps the run."""
        return self.sites[site].run_of(RUN).folder


@pytest.fixture(scope="module")
def heard(scenario, tmp_path_factory) -> Heard:
    """One run for the module."""
    return Heard(config_of(scenario), tmp_path_factory.mktemp("work"))


def loop_losses(work, adapter, samples):
    """Slow and plain: each sample alone, all logits, fp64 mean over the body."""
    loaded = work.loaded
    set_adapter(loaded, adapter)
    found = []
    for sample in samples:
        encoding = encode(loaded, sample, max_length=work.terms.model.max_length)
        batch = collate([encoding])
        with torch.no_grad():
            logits = loaded.model(input_ids=batch.tokens, attention_mask=batch.mask).logits[0]
        places = range(encoding.response_start, encoding.body_end)
        lines = [float(-logits[t - 1].double().log_softmax(-1)[batch.tokens[0, t]]) for t in places]
        found.append(np.mean(lines))
    return np.array(found)


def expected_of(work, reviewers, names, samples):
    """Mean, level and spread by the formulas, from slow losses."""
    rows, kinds = work.data.rows.samples, np.array(work.data.rows.kinds)
    losses, levels = [], []
    for name in names:
        public = loop_losses(work, reviewers[name], rows)
        mean = {
            d: public[(kinds == "clean") & (np.array([r.domain for r in rows]) == d)].mean()
            for d in {r.domain for r in rows}
        }
        losses.append(loop_losses(work, reviewers[name], samples))
        levels.append([mean[sample.domain] for sample in samples])
    losses, levels = np.array(losses), np.array(levels)
    spread = np.sqrt(
        (((losses - levels) - (losses - levels).mean(0)) ** 2).sum(0) / (len(names) - 1)
    )
    return {
        "review_mean": losses.mean(0),
        "review_level": levels.mean(0),
        "review_spread": spread,
    }


def test_reviews_equal_a_loop_of_single_samples_under_each_adapter(heard):
    """Private samples by the other sites' adapters, public rows by all: ≤ 1e-5 in every column."""
    reviewers = heard.one(m.MeasureRequest).reviewers
    assert tuple(reviewers) == SITES
    for site in ("south",):
        work = heard.sites[site].run_of(RUN)
        others = [name for name in SITES if name != site]
        own = tables.read_signals(work.folder / "signals-1.parquet")
        assert own.ids == work.data.samples.ids
        public = tables.read_signals(work.folder / "public-1.parquet")
        rows = {sample.id: sample for sample in work.data.rows.samples}
        shown = [rows[name] for name in public.ids]
        for table, names, samples in ((own, others, work.data.samples), (public, SITES, shown)):
            for name, values in expected_of(work, reviewers, names, samples).items():
                assert np.abs(table.columns[name] - values).max() <= 1e-5, (site, name)


def test_reviews_of_a_site_s_samples_do_not_know_its_own_adapter(heard, tmp_path):
    """Another own adapter changes no private review, and changes the public ones."""
    request = heard.one(m.MeasureRequest)
    own = request.reviewers["north"]
    other = replace(own, b={name: -3 * factor for name, factor in own.b.items()})
    changed = replace(request, reviewers={**request.reviewers, "north": other})
    site = Site(
        config=replace(heard.sites["north"].config, work=str(tmp_path)), cache=ProcessCache()
    )
    site.answer(heard.asked[0])
    site.answer(changed)
    for file, same in (("signals-1.parquet", True), ("public-1.parquet", False)):
        one, two = (
            tables.read_signals(f / file) for f in (heard.folder("north"), site.run_of(RUN).folder)
        )
        for name in ("review_mean", "review_spread"):
            assert np.array_equal(one.columns[name], two.columns[name]) == same, (file, name)


def test_public_reviews_agree_between_sites(heard):
    """Honest copies of the public rows are equal, bit for bit, whoever's adapter is whose."""
    place = heard.asked.index(heard.one(m.MeasureRequest))
    replies = [heard.replies[place][site].table for site in SITES]
    for other in replies[1:]:
        for name, values in replies[0].columns.items():
            assert np.array_equal(values, other.columns[name]), name
    assert "measure" not in {r.phase for r in heard.state.records if r.missing}


def test_the_model_holds_the_request_s_adapter_after_reviews(scenario, tmp_path):
    """Other columns of the same pass are those of a run without a committee."""
    short, compared = "training.rounds=0", 'scorer.comparison=["perplexity"]'
    both = Heard(config_of(scenario, short, compared), tmp_path / "a")
    plain = Heard(
        config_of(scenario, short, "scorer.name=perplexity", "scorer.settings={}"), tmp_path / "b"
    )
    for site in SITES:
        one, two = (
            tables.read_signals(run.folder(site) / "signals-1.parquet") for run in (both, plain)
        )
        assert np.array_equal(one.columns["loss"], two.columns["loss"])
    assert both.one(m.MeasureRequest).header == plain.one(m.MeasureRequest).header


def test_one_reviewer_at_a_time_is_in_the_model(heard, tmp_path, monkeypatch):
    """Two passes of the others and three of public rows, each with one adapter; then the main one.

    A reviewer of another rank takes no more than its own factors, and leaves nothing behind.
    """
    request = heard.one(m.MeasureRequest)
    small = halved(request.reviewers["west"])
    request = replace(request, reviewers={**request.reviewers, "west": small})
    site = Site(
        config=replace(heard.sites["north"].config, work=str(tmp_path)), cache=ProcessCache()
    )
    site.answer(heard.asked[0])
    loaded, held, real = site.run_of(RUN).loaded, [], reviewing.measure

    def watched(model, samples, options, **arguments):
        parts = [p.numel() for n, p in loaded.model.named_parameters() if "lora_" in n]
        held.append((len(samples), sum(parts)))
        return real(model, samples, options, **arguments)

    monkeypatch.setattr(reviewing, "measure", watched)
    site.answer(request)
    full = sum(factor.numel() for part in (small.a, small.b) for factor in part.values()) * 2
    rows, own = len(site.run_of(RUN).data.rows.samples), len(site.run_of(RUN).data.samples)
    expected = [(rows, full), (rows, full), (own, full), (rows, full // 2), (own, full // 2)]
    assert held == expected
    assert adapter_hash(get_adapter(loaded)) == request.header.adapter


def halved(adapter: Adapter) -> Adapter:
    """An adapter with half the rank."""
    return replace(
        adapter,
        a={name: factor[: len(factor) // 2].clone() for name, factor in adapter.a.items()},
        b={name: factor[:, : factor.shape[1] // 2].clone() for name, factor in adapter.b.items()},
    )


def test_queued_samples_are_not_trained_on_and_only_the_operator_sees_them(heard):
    """Kept, dropped or queued; the queue lists ids and scores; no message has a field for it."""
    number = 0
    for site in SITES:
        folder = heard.folder(site)
        reasons = tables.read_reasons(folder / "selection.parquet")
        kept = tables.read_kept(folder / "selection.parquet", "curated")
        queued = {name for name, reason in reasons.items() if reason == QUEUED}
        assert not queued & {name for name, keep in zip(reasons, kept, strict=True) if keep}
        listed = read_questions(heard.sites[site].config, RUN)
        assert {one.id for one in listed} == queued
        ids, _, scores = tables.read_scores(folder / "scores.parquet", "committee")
        by_id = dict(zip(ids, scores, strict=True))
        assert [one.score for one in listed] == sorted((by_id[q] for q in queued), reverse=True)
        data = [sample.id for sample in heard.sites[site].run_of(RUN).data.samples]
        assert all(one.row >= 1 for one in listed)
        assert len(data) == int(kept.sum()) + len(queued)
        number += len(queued)
    assert number > 0
    kept = {site: sum(tables.read_kept(heard.folder(site) / "selection.parquet", "curated"))
            for site in SITES}  # fmt: skip
    assert heard.state.kept["curated"] == kept


def test_queue_of_no_run_and_of_no_committee_is_an_error_with_a_cure(heard, scenario, tmp_path):
    """An unknown run, a run that has not selected, a scorer that asks nobody."""
    config = heard.sites["north"].config
    with pytest.raises(DataError, match=f"choose one of {RUN}"):
        read_questions(config, "nowhere")
    fresh = Site(config=replace(config, work=str(tmp_path / "fresh")), cache=ProcessCache())
    fresh.answer(heard.asked[0])
    with pytest.raises(DataError, match="has not selected yet"):
        read_questions(fresh.config, RUN)
    changes = ("scorer.name=length", "scorer.settings={}", "training.rounds=0")
    plain = Heard(config_of(scenario, *changes), tmp_path / "p")
    with pytest.raises(DataError, match="scorer 'length' has no queue"):
        read_questions(plain.sites["north"].config, RUN)


def changed(adapter: Adapter, change) -> Adapter:
    """An adapter with one factor of its first module changed."""
    name = adapter.modules[0]
    return replace(adapter, b={**adapter.b, name: change(adapter.b[name])})


def first_module(adapter: Adapter) -> Adapter:
    """An adapter of one module less."""
    name = adapter.modules[0]
    parts = {key: {name: getattr(adapter, key)[name]} for key in ("a", "b", "scales")}
    return replace(adapter, **parts)


BAD = {
    "NaN": (lambda a: changed(a, lambda b: b * float("nan")), NonFiniteError, "west"),
    "shape": (lambda a: changed(a, lambda b: b[:-1]), IncompatibleAdapterError, "west"),
    "base": (lambda a: replace(a, base="x"), IncompatibleAdapterError, "west"),
    "modules": (first_module, IncompatibleAdapterError, "west"),
}  # fmt: skip


@pytest.mark.parametrize("kind", BAD)
def test_reviewer_that_cannot_review_is_refused_by_name(heard, kind):
    """NaN, other shapes, base or modules: the site names the member, and keeps its tables."""
    change, error, name = BAD[kind]
    request = heard.one(m.MeasureRequest)
    bad = {**request.reviewers, name: change(request.reviewers[name])}
    with pytest.raises(error, match=name):
        check_reviewers(bad, request.adapter, "north")


def test_too_few_or_repeated_reviewers_are_refused(heard):
    """Fewer than two others, one adapter under two names, a name that is none."""
    request = heard.one(m.MeasureRequest)
    few = {name: request.reviewers[name] for name in ("north", "south")}
    for reviewers in ({}, few):
        with pytest.raises(ProtocolError, match="at least 2 other members"):
            check_reviewers(reviewers, request.adapter, "north")
    check_reviewers({**few, "west": request.reviewers["west"]}, request.adapter, "elsewhere")
    twice = {**request.reviewers, "east": request.reviewers["west"]}
    with pytest.raises(ProtocolError, match="'east' and 'west' are the same adapter"):
        check_reviewers(twice, request.adapter, "north")
    named = {**request.reviewers, "../x y": request.reviewers["west"]}
    with pytest.raises(ProtocolError, match="expected letters"):
        check_reviewers(named, request.adapter, "north")
    reply = heard.sites["north"].handle(replace(request, reviewers=few))
    assert isinstance(reply, m.Refusal)
    assert "at least 2 other members" in reply.reason


def test_committee_is_refused_where_nobody_could_disagree(scenario):
    """Two sites, no warm-up, or the same warm-up everywhere: the setting to change is named."""
    two = config_of(scenario)
    with pytest.raises(Exception, match="at least 3 sites, and the scenario has 2"):
        check_config(replace(two, sites=two.sites[:2]))
    for override, said in (
        ("run.trajectory=none", "run.trajectory = 'global'"),
        ("warm_up.data=anchors", "warm_up.data = 'all'"),
    ):
        with pytest.raises(PluginError, match=said):
            check_config(config_of(scenario, override))


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    """Scores, spreads and truth of all silos where a tenth of each has an answer of the other kind.

    Seed 0 of the toy federation, on which the spread does worst among the four that were tried.
    """
    folder = tmp_path_factory.mktemp("planted")
    path = write_toy_scenario(folder, samples=30)
    for site in SITES:
        file = folder / f"{site}.jsonl"
        rows = [json.loads(line) for line in file.read_text().splitlines()]
        clean = list(toy_rows(30, derive_seed(0, site), wrong=0.0))
        for place in (3, 12, 21):
            clean[place] |= {"response": clean[place + 1]["response"], "truth": "swap"}
        assert len(rows) == len(clean)
        file.write_text("".join(json.dumps(row) + "\n" for row in clean))
    changes = ("warm_up.steps=40", "warm_up.learning_rate=0.01", "training.rounds=0",
               "training.batch_size=8", "scorer.settings.doubtful=0.05")  # fmt: skip
    run = Heard(config_of(path, *changes), folder / "work")
    found = []
    for site in SITES:
        table = tables.read_signals(run.folder(site) / "signals-1.parquet")
        _, _, scores = tables.read_scores(run.folder(site) / "scores.parquet", "committee")
        truth = [s.labels["truth"] == "clean" for s in run.sites[site].run_of(RUN).data.samples]
        found.append(np.stack([scores, table.columns["review_spread"], truth]))
    return np.concatenate(found, axis=1)


@pytest.mark.slow
def test_planted_wrong_answers_are_found_by_mean_and_by_spread(planted):
    """A tenth of wrong answers: both signals rank them below clean ones (AUROC above 0.6)."""
    scores, spreads, clean = planted
    assert auroc(scores, clean.astype(bool)) > 0.6
    assert auroc(-spreads, clean.astype(bool)) > 0.6


@pytest.mark.slow
def test_planted_mean_and_spread_recall_within_five_points_of_the_mean_alone(planted):
    """At an equal keep rate the spread costs little recall of clean samples, whatever the cut.

    That it gains, as the paper says, did not hold here: over seeds 0 to 3, at 90 % passing and a
    tenth doubtful, 289 clean samples of 324 were kept with the spread and 290 without (worse in
    seed 0, better in seed 3, equal in the others).
    """
    scores, spreads, clean = planted
    ranks = np.argsort(-scores, kind="stable")
    for share in (0.7, 0.8, 0.9):
        threshold = scores[ranks[int(share * len(scores)) - 1]]
        for doubtful in (0.05, 0.1, 0.2):
            both = (scores >= threshold) & (spreads <= np.quantile(spreads, 1 - doubtful))
            alone = np.isin(np.arange(len(scores)), ranks[: both.sum()])
            lost = clean[alone].sum() - clean[both].sum()
            assert lost <= 0.05 * clean.sum(), (share, doubtful)
