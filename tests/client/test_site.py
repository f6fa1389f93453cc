"""Laws of a silo's one door: in order, from disk if repeated, no data in a refusal."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from fedwinnow.client import site as door
from fedwinnow.client.measuring.measuring_pass import measure
from fedwinnow.client.runs.process_cache import ProcessCache
from fedwinnow.client.runs.refusals import OWN
from fedwinnow.client.runs.site_run import take_rows
from fedwinnow.client.runs.tables import read_signals
from fedwinnow.client.signals import collect
from fedwinnow.client.site import Site
from fedwinnow.curation.adapters.checks import adapter_hash
from fedwinnow.curation.config.load_files import load_scenario, site_configs
from fedwinnow.curation.config.run import RunConfig
from fedwinnow.curation.config.site import SiteConfig
from fedwinnow.curation.protocol import messages as m
from fedwinnow.curation.protocol import wire
from fedwinnow.curation.scores.cell_groups import public_mass
from fedwinnow.server.run.fold import absorb, initial_state, next_request
from fedwinnow.simulations.datasets.toy_federation import write_toy_scenario

RUN = "toy-run"
SMALL = ("training.rounds=1", 'study.arms=["curated", "random"]', "evaluation.generate=1")


@pytest.fixture(scope="module")
def scenario(tmp_path_factory) -> Path:
    """A toy federation of three silos of eight samples."""
    return write_toy_scenario(tmp_path_factory.mktemp("toy"), samples=8)


@pytest.fixture(scope="module")
def cache() -> ProcessCache:
    """One warm model for the module."""
    return ProcessCache()


def config_of(scenario: Path, *overrides: str) -> RunConfig:
    """The toy run, small."""
    return load_scenario(scenario, (*SMALL, *overrides))


def make_site(config: RunConfig, work: Path, cache: ProcessCache, **changes) -> Site:
    """The site "south" of a run; ``changes`` are keys of its own configuration."""
    return Site(config=replace(site_configs(config, str(work))[1], **changes), cache=cache)


def walk(site: Site, config: RunConfig) -> list[tuple[m.Request, m.Reply]]:
    """The whole run with this one site: what was asked and what it said."""
    state, heard = initial_state(config, RUN), []
    while (request := next_request(state)) is not None:
        reply = site.answer(request)
        heard.append((request, reply))
        state = absorb(state, {site.name: reply})
    return heard


@pytest.fixture(scope="module")
def heard(scenario, cache, tmp_path_factory):
    """A finished run: its site's folder, requests and replies."""
    config = config_of(scenario, 'scorer.settings.signals=["losses", "gradients"]')
    work = tmp_path_factory.mktemp("work")
    site = make_site(config, work, cache)
    return work, config, walk(site, config)


def of(heard, kind, number=0):
    """The n-th request of a class."""
    return [request for request, _ in heard[2] if isinstance(request, kind)][number]


@pytest.fixture
def joined(heard, cache, tmp_path) -> Site:
    """A site of its own folder that has joined the run and done nothing else."""
    site = make_site(heard[1], tmp_path, cache)
    assert isinstance(site.handle(of(heard, m.JoinRequest)), m.Joined)
    return site


@pytest.fixture
def measured(heard, cache, tmp_path):
    """Makes the site of a run that is measured and scored but remembers no reply."""
    shutil.copytree(heard[0], tmp_path / "copy", ignore=shutil.ignore_patterns("replies"))

    def make(**changes) -> Site:
        site = make_site(heard[1], tmp_path / "copy", cache)
        own = replace(site.config.site, **changes)
        return Site(config=replace(site.config, site=own), cache=cache)

    return make


def refused(site: Site, request: m.Request, clause: str) -> str:
    """The reason of the refusal that must come."""
    reply = site.handle(request)
    assert isinstance(reply, m.Refusal), reply
    assert (reply.site, reply.clause, reply.header) == ("south", clause, request.header)
    return reply.reason


def test_site_answers_every_phase_with_its_reply(heard):
    """A whole run: each reply repeats the header of its request and the site's name."""
    kinds = [type(reply).__name__ for _, reply in heard[2]]
    assert kinds == [
        "Joined",
        "PublicSignals",
        "TrainedAdapter",
        "PublicSignals",
        "SummaryReply",
        "KeptReply",
        "MetricsReply",
        "TrainedAdapter",
        "MetricsReply",
        "TrainedAdapter",
        "MetricsReply",
        "Receipt",
    ]
    assert all(request.header == reply.header for request, reply in heard[2])
    assert {reply.site for _, reply in heard[2]} == {"south"}


def test_site_keeps_its_tables(heard):
    """Signals by checkpoint, scores, selection, gate and gradient norms stay in the folder."""
    names = {path.name for path in (heard[0] / "south" / RUN).iterdir()}
    assert names == {
        "gate.json",
        "gradient-norms-curated-1.json",
        "gradient-norms-random-1.json",
        "public-0.parquet",
        "public-1.parquet",
        "replies",
        "scores.parquet",
        "selection.parquet",
        "signals-0.parquet",
        "signals-1.parquet",
        "terms.json",
    }


def test_site_answers_a_repeated_request_from_disk(heard, monkeypatch):
    """A new process gives every reply again, bit for bit, and computes nothing."""

    def never(*_):
        raise AssertionError

    monkeypatch.setattr(door, "answer", never)
    again = make_site(heard[1], heard[0], ProcessCache())
    for request, reply in heard[2]:
        assert wire.encode(again.answer(request)) == wire.encode(reply)


def test_site_computes_what_differs_in_any_way(heard, cache):
    """Another round is another request: it is computed, not taken from disk."""
    site = make_site(heard[1], heard[0], cache)
    request = of(heard, m.TrainRequest, 1)
    later = replace(request, header=replace(request.header, round=7))
    assert isinstance(site.handle(later), m.TrainedAdapter)
    assert site.handle(later).header.round == 7


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        (m.ScoreRequest, "public-0.parquet is not there"),
        (m.SelectRequest, "scores.parquet is not there"),
    ],
)
def test_site_refuses_a_request_out_of_order(heard, joined, kind, said):
    """Score before measuring, select before scoring: refused, and nothing is written."""
    folder = Path(joined.config.work) / RUN
    before = sorted(folder.rglob("*"))
    assert said in refused(joined, of(heard, kind), "protocol")
    assert sorted(folder.rglob("*")) == before


def test_site_refuses_to_train_an_arm_before_the_selection(heard, joined):
    """Training on what was kept needs a selection."""
    said = refused(joined, of(heard, m.TrainRequest, 1), "protocol")
    assert "selection.parquet is not there" in said


def test_site_refuses_a_run_that_it_has_not_joined(heard, cache, tmp_path):
    """Any request but join of an unknown run is refused, and leaves no folder."""
    site = make_site(heard[1], tmp_path, cache)
    for request, _ in heard[2][1:]:
        assert "has not been joined" in refused(site, request, "protocol")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "run",
    [
        "",
        ".",
        "..",
        "../x",
        "a/b",
        "/abs",
        "a\\b",
        "a.b",
        "a\0b",
        "a b",
        "datasets",
        "sequence",
        "\u0661\u0662\u00e9",
        "r" * 65,
    ],
)
def test_site_refuses_a_run_id_that_looks_like_a_path(heard, cache, tmp_path, run):
    """A run id names a folder of its own: at most 64 ASCII letters, digits, '-' and '_'."""
    site = make_site(heard[1], tmp_path / "work", cache)
    for request in (of(heard, m.JoinRequest), of(heard, m.ProbeRequest)):
        refused(site, replace(request, header=replace(request.header, run=run)), "protocol")
    assert not list(tmp_path.iterdir())


def test_site_keeps_one_copy_of_its_data_and_a_bounded_number_of_runs(heard, cache, tmp_path):
    """Law: joins leave one open run; as many as ``max_open_runs`` may be unclosed, closed: any."""
    site = make_site(heard[1], tmp_path / "work", cache)
    policy = replace(site.config.policy, max_open_runs=2)
    site.config = replace(site.config, simulation=False, policy=policy)
    request = of(heard, m.JoinRequest)

    def ask(made, run):
        return site.handle(replace(made, header=replace(made.header, run=run)))

    for run in ("one", "two", "one"):
        assert isinstance(ask(request, run), m.Joined)
        assert list(site._runs) == [run]
    assert ask(request, "three").clause == "policy.max_open_runs"
    ask(of(heard, m.CloseRequest), "two")
    assert isinstance(ask(request, "three"), m.Joined)


def test_site_refuses_another_protocol(heard, joined):
    """A newer or older coordinator is refused with both versions."""
    request = of(heard, m.ProbeRequest)
    said = refused(joined, replace(request, header=replace(request.header, protocol=2)), "protocol")
    assert "protocol 2 came, this site speaks 1" in said


def test_site_refuses_an_adapter_that_the_header_does_not_name(heard, joined):
    """The header's hash must be the adapter's."""
    request = of(heard, m.ProbeRequest)
    wrong = replace(request, header=replace(request.header, adapter="0" * 64))
    assert "hash is" in refused(joined, wrong, "adapter")


def test_site_refuses_an_adapter_of_another_base(heard, joined):
    """An adapter for another base model is refused by fingerprint."""
    request = of(heard, m.ProbeRequest)
    wrong = replace(request, adapter=replace(request.adapter, base="f" * 64))
    assert "adapter is for base ffffffffffff" in refused(joined, wrong, "adapter")


def test_site_refuses_an_adapter_with_a_nan(heard, joined):
    """A NaN in a factor is refused by the factor's name."""
    request = of(heard, m.ProbeRequest)
    factors = {name: factor.clone() for name, factor in request.adapter.b.items()}
    name = min(factors)
    factors[name][0, 0] = torch.nan
    adapter = replace(request.adapter, b=factors)
    wrong = replace(
        request, adapter=adapter, header=replace(request.header, adapter=adapter_hash(adapter))
    )
    assert name in refused(joined, wrong, "protocol")


def test_site_refuses_an_adapter_of_other_modules(heard, joined):
    """A module that the site's model does not adapt is refused."""
    request = of(heard, m.ProbeRequest)
    old = request.adapter
    name = min(old.a)
    move = lambda factors: {(f"{k}.other" if k == name else k): v for k, v in factors.items()}  # noqa: E731 - used thrice
    adapter = replace(old, a=move(old.a), b=move(old.b), scales=move(old.scales))
    wrong = replace(
        request, adapter=adapter, header=replace(request.header, adapter=adapter_hash(adapter))
    )
    refused(joined, wrong, "adapter")


def test_site_refuses_other_terms_under_the_same_run_id(heard, joined, scenario):
    """A run's terms are fixed at its first join; asking again with the same ones is fine."""
    request = of(heard, m.JoinRequest)
    other = next_request(initial_state(config_of(scenario, "run.seed=5"), RUN))
    assert "already joined under other terms" in refused(joined, other, "terms")
    assert isinstance(joined.handle(request), m.Joined)
    assert joined.handle(of(heard, m.ProbeRequest)) is not None


@pytest.mark.parametrize("terms", ["", "[]", "{", '{"unknown": 1}', '{"run": {"threads": 0}}'])
def test_site_refuses_terms_that_make_no_sense(heard, cache, tmp_path, terms):
    """Broken terms are refused, and the run is not joined."""
    site = make_site(heard[1], tmp_path, cache)
    request = replace(of(heard, m.JoinRequest), terms=terms)
    assert isinstance(site.handle(request), m.Refusal)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("scorer.name=magic", "scorer 'magic' is unknown; choose one of calibrated"),
        ("scorer.settings.wild=1", "has no setting 'wild'"),
        ("training.objective.name=magic", "objective 'magic' is unknown"),
        ("training.ordering.name=os.system", "ordering 'os.system' is unknown"),
    ],
)
def test_site_that_lacks_a_plug_in_says_so_at_join(scenario, cache, tmp_path, override, said):
    """An unknown plug-in or setting is refused with the choices, before anything is computed."""
    config = config_of(scenario, override)
    site = make_site(config, tmp_path, cache)
    assert said in refused(site, next_request(initial_state(config, RUN)), "terms")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "line",
    ["scorer.name=tracin", 'scorer.settings.signals=["gradients"]', "clusters.count=4"],
)
def test_site_refuses_gradient_scorers_without_a_trajectory(scenario, cache, tmp_path, line):
    """A scorer of gradients, and clusters of losses, are refused by run.trajectory at join."""
    config = config_of(scenario, "run.trajectory=none", line)
    site = make_site(config, tmp_path, cache)
    assert "run.trajectory" in refused(site, next_request(initial_state(config, RUN)), "terms")


def test_site_refuses_a_threshold_off_the_grid(heard, cache):
    """A threshold between grid points could count single samples: refused."""
    site = make_site(heard[1], heard[0], cache)
    request = of(heard, m.SelectRequest)
    before = (heard[0] / "south" / RUN / "selection.parquet").read_bytes()
    off = replace(request, threshold=float(np.nextafter(request.threshold, np.inf)))
    assert "not on the grid" in refused(site, off, "threshold")
    own = replace(request, per_site={"south": 0.123456789})
    assert "not on the grid" in refused(site, own, "threshold")
    assert (heard[0] / "south" / RUN / "selection.parquet").read_bytes() == before


@pytest.mark.parametrize(("value", "kept"), [(float("-inf"), 8), (float("inf"), 0)])
def test_site_takes_infinite_thresholds(heard, measured, value, kept):
    """−inf keeps every scored sample, +inf none; a silo that keeps nothing does not train."""
    site = measured()
    reply = site.handle(replace(of(heard, m.SelectRequest), threshold=value))
    assert reply.kept["curated"] == kept
    trained = site.handle(of(heard, m.TrainRequest, 1))
    assert (trained.adapter is None) == (kept == 0)
    assert trained.samples == kept


def test_site_outside_a_simulation_answers_no_study_arm(heard, measured):
    """Keep-all, random and oracle counts are answered in simulations only."""
    site = measured()
    real = Site(config=replace(site.config, simulation=False), cache=site.cache)
    assert isinstance(real.handle(of(heard, m.ScoreRequest)), m.SummaryReply)
    assert "simulations only" in refused(real, of(heard, m.SelectRequest), "policy.arms")


def test_sites_that_warm_up_on_anchors_train_the_same_adapter(scenario, cache, tmp_path):
    """``warm_up.data = "anchors"``: no private sample is read, and every site has one result."""
    config = config_of(scenario, 'warm_up.data="anchors"', 'scorer.name="loss_drop"')
    found = []
    for index, site in enumerate(site_configs(config, str(tmp_path))):
        one = Site(config=site, cache=cache)
        state = initial_state(config, RUN)
        while (request := next_request(state)).header.phase != "score":
            reply = one.answer(request)
            if isinstance(reply, m.TrainedAdapter):
                found.append(adapter_hash(reply.adapter))
            state = absorb(state, {one.name: reply})
        assert len(found) == index + 1
        assert isinstance(one.answer(next_request(state)), m.SummaryReply)
    assert len(set(found)) == 1


def bent(request, how):
    """A score request whose public rows are not those that the sites measured."""
    last = request.tables[-1]
    name, values = min(last.columns.items())
    changed = values.copy()
    changed.flat[0] += 0.01 * np.abs(values).max()
    kinds, parents = request.kinds, request.parents
    tables = {
        "value": replace(last, columns={**last.columns, name: changed}),
        "column": replace(last, columns={name: values}),
        "id": replace(last, ids=("invented", *last.ids[1:])),
        "fewer": take_rows(last, range(len(last.ids) - 1)),
        "gram": replace(last, reference_gram=1.1 * last.reference_gram),
        "rate": replace(last, learning_rate=last.learning_rate + 1.0),
    }
    if how == "kinds":
        kinds = ("invented", *kinds[1:])
    if how == "parents":
        parents = ("invented", *parents[1:])
    tables = (*request.tables[:-1], tables.get(how, last))
    return replace(request, tables=tables, kinds=kinds, parents=parents)


@pytest.mark.parametrize(
    "how", ["value", "column", "id", "fewer", "gram", "rate", "kinds", "parents"]
)
def test_site_fits_its_scorer_on_no_invented_rows(heard, measured, how):
    """Agreed public rows that are not its own are refused, whatever is changed in them."""
    assert "public rows of checkpoint" in refused(
        measured(), bent(of(heard, m.ScoreRequest), how), "public_rows"
    )


def test_site_takes_agreed_rows_that_differ_by_rounding(heard, measured):
    """The median over sites is not bit for bit this site's."""
    request = of(heard, m.ScoreRequest)
    tables = tuple(
        replace(table, columns={n: v * (1 + 1e-5) for n, v in table.columns.items()})
        for table in request.tables
    )
    assert isinstance(measured().handle(replace(request, tables=tables)), m.SummaryReply)


def test_site_rounds_every_count_that_leaves(heard, measured):
    """With round_counts_to = 5 every count in a reply is a multiple of 5."""
    site = measured(round_counts_to=5)
    kinds = m.JoinRequest | m.ScoreRequest | m.SelectRequest | m.TrainRequest
    replies = [site.answer(request) for request, _ in heard[2] if isinstance(request, kinds)]
    counts = [replies[0].card.samples]
    counts += [n for r in replies if isinstance(r, m.KeptReply) for n in r.kept.values()]
    counts += [r.samples for r in replies if isinstance(r, m.TrainedAdapter)]
    counts += [r.unscored for r in replies if isinstance(r, m.SummaryReply)]
    assert counts
    assert all(count % 5 == 0 for count in counts)


def test_site_groups_cells_to_its_own_smallest(heard, measured):
    """Law: the larger of the run's and the site's smallest cell holds: one group of all 8."""
    reply = measured(smallest_cell=8).answer(of(heard, m.ScoreRequest))
    mass = public_mass(reply.summary.edges, reply.public_scores)
    assert reply.summary.counts == pytest.approx(8 * mass)


def test_site_leaves_out_overlap_with_the_anchors_silently(scenario, cache, tmp_path):
    """A private sample that is an anchor is dropped; only the site's own file says so."""
    lines = (scenario.parent / "south.jsonl").read_text(encoding="utf-8").splitlines()
    anchor = (scenario.parent / "anchors.jsonl").read_text(encoding="utf-8").splitlines()[0]
    data = tmp_path / "south.jsonl"
    data.write_text("\n".join([anchor, *lines]) + "\n", encoding="utf-8")
    config = config_of(scenario, f"sites.1.data={json.dumps(str(data))}")
    site = make_site(config, tmp_path / "work", cache)
    reply = site.handle(next_request(initial_state(config, RUN)))
    assert reply.card.samples == 8
    gate = json.loads((tmp_path / "work" / "south" / RUN / "gate.json").read_text())
    assert gate == {"0": "equals or nearly equals a public anchor"}


CANARY = "CANARY-7f3a"


def broken(kind: str, folder: Path, good: list[str]) -> str:
    """A data file with something wrong in it, full of canaries."""
    file = folder / f"{CANARY}.jsonl"
    rows = [json.loads(line) for line in good]
    spoiled = [row | {"prompt": f"{CANARY} {row['prompt']}", "truth": CANARY} for row in rows]
    lines = [json.dumps(row) for row in spoiled]
    if kind == "broken line":
        lines[3] = f'{{"prompt": "{CANARY}'
    if kind == "missing column":
        lines = [json.dumps({f"{CANARY}-column": "x"})]
    if kind == "wrong type":
        lines[2] = json.dumps({"prompt": {CANARY: 1}, "response": CANARY, "domain": 3})
    if kind == "nothing passes":
        lines = (folder.parent / "anchors.txt").read_text(encoding="utf-8").splitlines()
    if kind != "missing file":
        file.write_text("\n".join(lines) + "\n" if kind != "empty" else "", encoding="utf-8")
    return str(file)


@pytest.mark.parametrize(
    "kind",
    ["broken line", "missing column", "wrong type", "missing file", "empty", "nothing passes"],
)
def test_site_refusals_hold_nothing_of_the_silo(heard, scenario, cache, tmp_path, kind, caplog):
    """What is wrong with the data is in the site's own log; the server hears a clause only."""
    (tmp_path / "anchors.txt").write_bytes((scenario.parent / "anchors.jsonl").read_bytes())
    folder = tmp_path / CANARY
    folder.mkdir()
    good = (scenario.parent / "south.jsonl").read_text(encoding="utf-8").splitlines()
    base = site_configs(heard[1], str(tmp_path / "work"))[1]
    config = replace(
        base, simulation=False, site=replace(base.site, data=broken(kind, folder, good))
    )
    reply = Site(config=config, cache=cache).handle(of(heard, m.JoinRequest))
    assert isinstance(reply, m.Refusal)
    assert reply.clause == "failed"
    data = wire.encode(reply)
    assert CANARY.encode() not in data
    assert str(tmp_path).encode() not in data
    assert b"jsonl" not in data
    assert CANARY in caplog.text  # the operator reads which file


def test_site_failure_inside_tells_the_server_its_class_only(heard, joined, monkeypatch, caplog):
    """Law: any exception becomes a refusal; its text, which may hold data, stays in the log.

    In a simulation all is one person's, who has no log of the site's own: there it is told.
    """

    def fails(*_):
        raise ValueError(CANARY)

    monkeypatch.setattr(door, "answer", fails)
    real = Site(config=replace(joined.config, simulation=False), cache=joined.cache)
    reply = real.handle(of(heard, m.ProbeRequest))
    assert (reply.clause, reply.site, reply.reason) == ("failed", "south", OWN)
    assert CANARY.encode() not in wire.encode(reply)
    assert CANARY in caplog.text
    assert joined.handle(of(heard, m.ProbeRequest)).reason == f"ValueError: {CANARY}"


def test_site_full_disk_is_a_refusal_and_no_half_reply(heard, joined, monkeypatch):
    """A reply that cannot be stored is not given; the next time it is computed again."""
    request = of(heard, m.ProbeRequest)
    with monkeypatch.context() as patch:

        def full(_self, _data):
            raise OSError(28, "No space left on device")

        patch.setattr(Path, "write_bytes", full)
        refused(joined, request, "failed")
    replies = Path(joined.config.work) / RUN / "replies"
    assert [path.name.split("-")[0] for path in replies.iterdir()] == ["join"]
    assert isinstance(joined.handle(request), m.PublicSignals)


def test_site_default_configuration_is_no_simulation():
    """Study arms and error texts are for simulations; a site.toml is none unless it says so."""
    assert SiteConfig.__dataclass_fields__["simulation"].default is False


def test_site_measures_in_shards_what_it_measures_whole(heard, cache, tmp_path, monkeypatch):
    """Shards of three samples: the numbers of the whole but for rounding, and no shard stays."""
    monkeypatch.setattr(collect, "SHARD", 3)
    site = make_site(heard[1], tmp_path, cache)
    site.answer(of(heard, m.JoinRequest))
    site.answer(of(heard, m.ProbeRequest))
    file = f"south/{RUN}/signals-0.parquet"
    cut, whole = read_signals(tmp_path / file), read_signals(heard[0] / file)
    assert cut.ids == whole.ids
    for name, values in whole.columns.items():
        np.testing.assert_allclose(cut.columns[name], values, rtol=1e-4, atol=1e-5)  # fp32
    assert not (tmp_path / "south" / RUN / "shards").exists()


def test_site_goes_on_after_a_kill_in_a_measuring_pass(heard, cache, tmp_path, monkeypatch):
    """Killed at its third shard, a site measures only what is missing when it is asked again."""
    monkeypatch.setattr(collect, "SHARD", 3)
    site, seen = make_site(heard[1], tmp_path, cache), []
    site.answer(of(heard, m.JoinRequest))

    def counted(loaded, samples, options, **arguments):
        seen.append(len(samples))
        if len(seen) == 3:
            raise KeyboardInterrupt
        return measure(loaded, samples, options, **arguments)

    monkeypatch.setattr(collect, "measure", counted)
    with pytest.raises(KeyboardInterrupt):
        site.answer(of(heard, m.ProbeRequest))
    site.answer(of(heard, m.ProbeRequest))
    assert seen[:4] == [3, 3, 2, 2]
