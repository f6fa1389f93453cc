"""Laws of the fold: phases in order, order of arrival nothing, strangers refused by name."""

import itertools
import json
import logging
from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from fake_federation import (
    EDGES,
    PHASES,
    SITES,
    FakeSites,
    at,
    make_config,
    nudged,
    replies_to,
    run_until,
)

from fedwinnow.curation.adapters.checks import adapter_hash
from fedwinnow.curation.config.run import RunTerms
from fedwinnow.curation.config.scoring import RunSection
from fedwinnow.curation.config.strict_toml import canonical_json, parse
from fedwinnow.curation.config.training import StudySection, TrainingSection
from fedwinnow.curation.datatypes import Metrics, ScoreSummary
from fedwinnow.curation.errors import EmptySelectionError, ProtocolError
from fedwinnow.curation.protocol import messages as m
from fedwinnow.curation.protocol import wire
from fedwinnow.server.run.fold import absorb, initial_state, next_request
from fedwinnow.server.state import RunState


def run_all(config, sites=None) -> tuple[RunState, list[m.Request]]:
    """Fold until nothing is asked any more."""
    state, asked = initial_state(config, "fake-run"), []
    while (request := next_request(state)) is not None:
        asked.append(request)
        state = absorb(state, replies_to(request, sites))
    return state, asked


def steps_of(asked):
    """(phase, round, arm) of each request."""
    return [(r.header.phase, r.header.round, r.header.arm) for r in asked]


def test_rounds_global_run_asks_in_the_order_of_the_protocol():
    """Two warm-up rounds, three training rounds evaluated every second, two arms, then close."""
    state, asked = run_all(make_config())
    arm = lambda name: [  # noqa: E731 - local shorthand
        ("train", 1, name),
        ("train", 2, name),
        ("evaluate", 2, name),
        ("train", 3, name),
        ("evaluate", 3, name),
    ]
    assert steps_of(asked) == [
        ("join", 0, ""),
        ("probe", 0, ""),
        ("warm_up", 1, ""),
        ("measure", 1, ""),
        ("warm_up", 2, ""),
        ("measure", 2, ""),
        ("score", 0, ""),
        ("select", 0, ""),
        ("evaluate", 0, ""),
        *arm("curated"),
        *arm("keep_all"),
        ("close", 0, ""),
    ]
    assert state.phase == "done"
    assert next_request(state) is None
    assert [(r.phase, r.round, r.arm) for r in state.records] == steps_of(asked)
    assert set(state.finals) == {"curated", "keep_all"}
    assert asked[-1].header.adapter == adapter_hash(state.finals["curated"])


def test_rounds_forward_only_run_skips_warm_up_and_measuring():
    """Trajectory "none": join, probe, score, select, and training of the one arm."""
    config = make_config(
        run=RunSection(name="fake", trajectory="none"),
        training=TrainingSection(rounds=1),
        study=StudySection(),
    )
    state, asked = run_all(config, FakeSites(arms=("curated",)))
    assert [phase for phase, _, _ in steps_of(asked)] == [
        "join",
        "probe",
        "score",
        "select",
        "evaluate",
        "train",
        "evaluate",
        "close",
    ]
    assert len(state.tables) == 1


def test_rounds_scoring_alone_trains_nothing():
    """Zero training rounds: after the selection the run closes, without an adapter."""
    state, asked = run_all(make_config(training=TrainingSection(rounds=0)))
    assert [phase for phase, _, _ in steps_of(asked)][-2:] == ["select", "close"]
    assert not state.finals


def test_rounds_every_arm_starts_from_the_initial_adapter():
    """Each arm's first round, the probe and the first warm-up speak of θ_0; later ones do not."""
    _, asked = run_all(make_config())
    first = asked[1].header.adapter
    of_initial = [
        step for step, r in zip(steps_of(asked), asked, strict=True) if r.header.adapter == first
    ]
    assert of_initial == [
        ("probe", 0, ""),
        ("warm_up", 1, ""),
        ("evaluate", 0, ""),
        ("train", 1, "curated"),
        ("train", 1, "keep_all"),
    ]


def test_rounds_training_plan_spans_the_rounds():
    """Offsets grow by the steps of a round, the total is the same in every round and arm."""
    _, asked = run_all(make_config())
    trained = [r for r in asked if isinstance(r, m.TrainRequest)]
    warm = [(r.step_offset, r.total_steps) for r in trained if r.header.phase == "warm_up"]
    assert warm == [(0, 8), (4, 8)]
    for arm in ("curated", "keep_all"):
        plan = [(r.step_offset, r.total_steps) for r in trained if r.header.arm == arm]
        assert plan == [(0, 15), (5, 15), (10, 15)]
    assert {r.sites for r in trained} == {SITES}


def test_rounds_scores_are_asked_with_the_agreed_rows_of_every_checkpoint():
    """The score request repeats the tables of checkpoints 0, 1 and 2, kinds and parents."""
    _, asked = run_all(make_config())
    (request,) = [r for r in asked if isinstance(r, m.ScoreRequest)]
    assert [table.checkpoint for table in request.tables] == [0, 1, 2]
    assert request.kinds[0] == "clean"
    assert len(request.parents) == 6


def test_rounds_join_sends_the_terms_and_no_path():
    """The join request holds the run's terms as canonical JSON."""
    config = make_config("/secret/output")
    request = next_request(initial_state(config, "fake-run"))
    assert parse(json.loads(request.terms), RunTerms) == config.terms()
    assert "/secret" not in request.terms


@pytest.mark.parametrize("phase", PHASES)
def test_rounds_order_of_replies_changes_nothing(phase):
    """Whatever the order of arrival: the same state, bit for bit."""
    state = at(phase)
    replies = replies_to(next_request(state))
    expected = wire.dump(absorb(state, replies))
    for order in itertools.permutations(SITES):
        assert wire.dump(absorb(state, {site: replies[site] for site in order})) == expected


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("name", [f.name for f in fields(m.Header)])
def test_rounds_reply_of_another_header_is_refused_by_name_and_changes_nothing(phase, name):
    """A reply that differs in any one field of the header counts as missing, with the reason."""
    state = at(phase)
    replies = replies_to(next_request(state))
    without = absorb(state, {site: replies[site] for site in SITES[:2]}, {"gamma": "x"})
    wrong = 99 if name in {"round", "protocol"} else "other"
    stale = replace(replies["gamma"], header=replace(replies["gamma"].header, **{name: wrong}))
    found = absorb(state, replies | {"gamma": stale})
    why = found.records[-1].missing["gamma"]
    assert f"{name} is {wrong!r}" in why
    record = replace(found.records[-1], missing={"gamma": "x"})
    assert wire.dump(replace(found, records=(*found.records[:-1], record))) == wire.dump(without)


def test_rounds_words_of_a_carrier_are_cleaned():
    """Law: why nothing came is a stranger's text too, as a node's or a relay's words are."""
    state = at(PHASES[1])
    replies = replies_to(next_request(state))
    heard = {site: replies[site] for site in SITES[:2]}
    found = absorb(state, heard, {"gamma": "gone\x1b[31m\nat\u202eonce" + "x" * 10**5})
    why = found.records[-1].missing["gamma"]
    assert why.isprintable()
    assert why.startswith("gone")
    assert len(why) < 10**4


@pytest.mark.parametrize("phase", PHASES)
def test_rounds_refusal_is_recorded_with_clause_and_reason(phase):
    """A refusal is no reply: clause and reason stand in the record."""
    state = at(phase)
    request = next_request(state)
    refusal = m.Refusal(
        header=request.header, site="beta", clause="policy.max_rounds", reason="enough"
    )
    found = absorb(state, replies_to(request) | {"beta": refusal})
    assert found.records[-1].missing == {"beta": "refused (policy.max_rounds): enough"}


@pytest.mark.parametrize("phase", PHASES)
def test_rounds_too_few_sites_end_the_run_with_every_reason(phase):
    """Below run.minimum_sites: a ProtocolError with the phase and why each site is missing."""
    config = make_config(run=RunSection(name="fake", minimum_sites=3, trajectory="global"))
    state = run_until(config, phase)
    replies = replies_to(next_request(state))
    del replies["beta"]
    with pytest.raises(ProtocolError, match=r"2 of at least 3.*beta: no answer") as caught:
        absorb(state, replies, {"beta": "no answer within 5 s"})
    assert phase in str(caught.value)
    with pytest.raises(ProtocolError, match="0 of at least 3"):
        absorb(state, {})


@pytest.mark.parametrize("phase", PHASES[1:])
def test_rounds_site_that_never_joined_is_refused_by_name(phase):
    """After join, a reply of a stranger changes nothing."""
    state = at(phase)
    request = next_request(state)
    stranger = FakeSites(
        kept={arm: dict.fromkeys([*SITES, "mallory"], 3) for arm in ("curated", "keep_all")}
    ).answer("mallory", request)
    found = absorb(state, replies_to(request) | {"mallory": stranger})
    assert found.records[-1].missing == {"mallory": "is refused: is no member of this run"}


@pytest.mark.parametrize("phase", PHASES)
def test_rounds_site_that_speaks_for_another_is_refused_by_name(phase):
    """A reply under another site's name does not count for either."""
    state = at(phase)
    replies = replies_to(next_request(state))
    forged = replace(replies["beta"], site="alpha")
    found = absorb(state, replies | {"beta": forged})
    assert "speaks as site 'alpha'" in found.records[-1].missing["beta"]


def _infinite(reply):
    return replace(reply, losses=(float("inf"),))


def _other_modules(reply):
    adapter = reply.adapter
    names = ["x.q_proj", "x.v_proj"]
    rename = lambda factors: dict(zip(names, factors.values(), strict=True))  # noqa: E731 - used thrice
    renamed = replace(
        adapter, a=rename(adapter.a), b=rename(adapter.b), scales=rename(adapter.scales)
    )
    return replace(reply, adapter=renamed)


def _nan(reply):
    adapter = nudged(reply.adapter, "copy")
    next(iter(adapter.b.values()))[0, 0] = torch.nan
    return replace(reply, adapter=adapter)


@pytest.mark.parametrize(
    ("phase", "spoil", "said"),
    [
        ("join", lambda r: replace(r, card=replace(r.card, site="alpha")), "its card names"),
        ("join", lambda r: replace(r, card=replace(r.card, samples=0)), "of samples is 0"),
        (
            "probe",
            lambda r: m.Receipt(header=r.header, site=r.site),
            "with a Receipt, not a Publ",
        ),
        ("train", lambda r: replace(r, samples=-4), "of samples is -4"),
        ("train", lambda r: replace(r, adapter=None), "no adapter for 3 samples"),
        ("train", lambda r: replace(r, samples=0), "an adapter for 0 samples"),
        ("train", lambda r: replace(r, adapter=replace(r.adapter, base="x")), "expected base"),
        ("train", _infinite, "is no loss"),
        ("train", _other_modules, "site 'beta'"),
        ("train", _nan, "NaN or infinity"),
        ("warm_up", _nan, "NaN or infinity"),
        ("select", lambda r: replace(r, kept={"curated": 3}), "kept count of each arm"),
        ("select", lambda r: replace(r, kept={"curated": -3, "keep_all": 8}), "kept samples is -3"),
        (
            "score",
            lambda r: replace(r, summary=ScoreSummary(edges=EDGES, counts=np.ones(7))),
            "7 cells on 3 edges",
        ),
        (
            "score",
            lambda r: replace(r, summary=ScoreSummary(edges=EDGES, counts=np.full(4, -1.0))),
            "below 0",
        ),
        (
            "score",
            lambda r: replace(r, summary=replace(r.summary, edges=EDGES + 1)),
            "on other edges",
        ),
        ("score", lambda r: replace(r, public_scores=np.zeros(2)), "2 public rows, not 6"),
        ("score", lambda r: replace(r, forecast={"auroc": float("inf")}), "no number"),
        ("evaluate", lambda r: replace(r, public_losses=np.zeros(2)), "the others 3"),
        ("evaluate", lambda r: replace(r, own=Metrics(loss_sum=1.0, samples=-2)), "is -2"),
    ],
)
def test_rounds_senseless_reply_is_refused_by_name(phase, spoil, said):
    """A reply that cannot be true counts as missing; the run goes on with the other sites."""
    state = at(phase)
    replies = replies_to(next_request(state))
    found = absorb(state, replies | {"beta": spoil(replies["beta"])})
    assert said in found.records[-1].missing["beta"]
    assert set(found.records[-1].missing) == {"beta"}


@pytest.mark.parametrize("arm", ["curated", "keep_all"])
def test_rounds_site_that_keeps_nothing_has_no_weight(arm):
    """One site keeps nothing in an arm: weight 0, no adapter, and the run goes on."""
    sites = FakeSites()
    sites.kept = {**sites.kept, arm: {**sites.kept[arm], "beta": 0}}
    state, _ = run_all(make_config(), sites)
    rounds = [r for r in state.records if r.phase == "train" and r.arm == arm]
    assert len(rounds) == 3
    for record in rounds:
        assert record.sites["beta"].weight == 0.0
        assert record.sites["beta"].samples == 0
        assert sum(site.weight for site in record.sites.values()) == pytest.approx(1.0)
        assert not record.missing


def test_rounds_arm_that_keeps_nothing_is_left_out(caplog):
    """A study arm without a sample is skipped with a warning; the curated one is trained."""
    sites = FakeSites()
    sites.kept = {**sites.kept, "keep_all": dict.fromkeys(SITES, 0)}
    with caplog.at_level(logging.WARNING):
        state, asked = run_all(make_config(), sites)
    assert set(state.finals) == {"curated"}
    assert "keep_all" not in {arm for _, _, arm in steps_of(asked)}
    assert "arm keep_all keeps no sample" in caplog.text


def test_rounds_nothing_kept_anywhere_is_a_named_error():
    """No sample kept for the curated arm: EmptySelectionError that says what to change."""
    sites = FakeSites()
    sites.kept = {**sites.kept, "curated": dict.fromkeys(SITES, 0)}
    with pytest.raises(EmptySelectionError, match=r"0 samples are kept at threshold .* keep_all"):
        run_all(make_config(), sites)


def test_rounds_nothing_kept_is_no_error_where_nothing_is_trained():
    """Scoring alone may keep nothing: the run closes."""
    sites = FakeSites()
    sites.kept = {**sites.kept, "curated": dict.fromkeys(SITES, 0)}
    state, _ = run_all(make_config(training=TrainingSection(rounds=0)), sites)
    assert state.phase == "done"


@pytest.mark.parametrize("liar", SITES)
@pytest.mark.parametrize("what", ["base", "anchors", "initial adapter"])
def test_rounds_join_leaves_out_whoever_holds_something_else(liar, what):
    """Another base, anchor set or initial adapter than the majority's: refused by name."""
    state = initial_state(make_config(), "fake-run")
    replies = replies_to(next_request(state))
    reply = replies[liar]
    if what == "initial adapter":
        reply = replace(reply, adapter=nudged(reply.adapter, "other"))
    else:
        reply = replace(reply, card=replace(reply.card, **{what: "other"}))
    found = absorb(state, replies | {liar: reply})
    assert found.sites == tuple(site for site in SITES if site != liar)
    assert found.records[-1].missing[liar].startswith(f"{what} ")
    assert adapter_hash(found.initial) == adapter_hash(replies[found.sites[0]].adapter)
    few = initial_state(
        make_config(run=RunSection(name="fake", minimum_sites=3, trajectory="global")), "fake-run"
    )
    with pytest.raises(ProtocolError, match=rf"2 of at least 3 sites agree \({liar}: {what}"):
        absorb(few, replies | {liar: reply})


def _shifted(reply):
    columns = {name: values + 1 for name, values in reply.table.columns.items()}
    return replace(reply, table=replace(reply.table, columns=columns))


LIES = {
    "column": _shifted,
    "gram": lambda r: replace(
        r, table=replace(r.table, reference_gram=r.table.reference_gram * 3 + 1)
    ),
    "ids": lambda r: replace(r, table=replace(r.table, ids=("x",) * 6)),
    "kinds": lambda r: replace(r, kinds=("clean",) * 6),
    "learning rate": lambda r: replace(r, table=replace(r.table, learning_rate=9.0)),
    "rows": lambda r: replace(
        r,
        kinds=r.kinds[:5],
        parents=r.parents[:5],
        table=replace(
            r.table,
            ids=r.table.ids[:5],
            domains=r.table.domains[:5],
            status=r.table.status[:5],
            columns={name: values[:5] for name, values in r.table.columns.items()},
        ),
    ),
}


@pytest.mark.parametrize("liar", SITES)
@pytest.mark.parametrize("lie", LIES)
def test_rounds_liar_about_public_rows_is_refused_by_name(liar, lie):
    """Of three sites one lies about public rows: it is named, and the agreed rows are honest."""
    state = at("measure")
    replies = replies_to(next_request(state))
    found = absorb(state, replies | {liar: LIES[lie](replies[liar])})
    assert set(found.records[-1].missing) == {liar}
    assert "public" in found.records[-1].missing[liar]
    honest = absorb(state, replies)
    assert wire.dump(found.tables[-1]) == wire.dump(honest.tables[-1])


@pytest.mark.parametrize("liar", SITES)
def test_rounds_liar_about_public_scores_is_refused_by_name(liar):
    """Its scores of public rows differ: its histogram does not count."""
    state = at("score")
    replies = replies_to(next_request(state))
    lie = replace(replies[liar], public_scores=replies[liar].public_scores + 1e-3)
    found = absorb(state, replies | {liar: lie})
    assert set(found.records[-1].missing) == {liar}
    assert set(found.summaries) == set(SITES) - {liar}
    assert found.public_scores == tuple(replies["alpha"].public_scores) or liar == "alpha"


def test_rounds_scores_within_tolerance_agree():
    """Rounding of another machine, 1e-7, is no lie."""
    state = at("score")
    replies = replies_to(next_request(state))
    close = replace(replies["beta"], public_scores=replies["beta"].public_scores + 1e-7)
    assert not absorb(state, replies | {"beta": close}).records[-1].missing


def test_rounds_two_sites_that_disagree_are_both_named():
    """With two sites nobody can say who lies: the run ends and names both."""
    state = at("measure")
    replies = replies_to(next_request(state))
    two = {"alpha": replies["alpha"], "beta": _shifted(replies["beta"])}
    with pytest.raises(ProtocolError, match=r"0 of at least 1 sites agree \(alpha: .*beta: "):
        absorb(state, two)


def test_rounds_state_survives_the_disk_in_every_phase():
    """Dump and restore give the same state, the same next request and the same successor."""
    state = initial_state(make_config(), "fake-run")
    while (request := next_request(state)) is not None:
        restored = wire.restore(wire.dump(state), RunState)
        assert wire.dump(restored) == wire.dump(state)
        assert wire.encode(next_request(restored)) == wire.encode(request)
        replies = replies_to(request)
        state, other = absorb(state, replies), absorb(restored, replies)
        assert wire.dump(other) == wire.dump(state)


def test_rounds_absorb_leaves_its_arguments_alone():
    """The old state and the replies are the same bytes afterwards."""
    state = at("train")
    replies = replies_to(next_request(state))
    before = [wire.dump(state), *(wire.encode(reply) for reply in replies.values())]
    absorb(state, replies, {"delta": "late"})
    assert [wire.dump(state), *(wire.encode(reply) for reply in replies.values())] == before


def test_rounds_generations_are_asked_before_and_at_the_end_of_the_curated_arm():
    """Only the first evaluation and the curated arm's last one generate."""
    config = make_config()
    config = replace(config, evaluation=replace(config.evaluation, generate=2))
    _, asked = run_all(config)
    generated = [r.header for r in asked if isinstance(r, m.EvaluateRequest) and r.generate]
    assert [(h.round, h.arm) for h in generated] == [(0, ""), (3, "curated")]


def test_rounds_state_of_another_configuration_is_readable():
    """The state carries its whole configuration as canonical JSON."""
    config = make_config()
    assert initial_state(config, "x").config == canonical_json(config)
