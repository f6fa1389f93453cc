"""The silo's own word: each clause refuses what asks too much by its name, and lets the rest be."""

import inspect
import json
from dataclasses import replace

import pytest
from policy_silo import (
    adapter_of,
    evaluate,
    head,
    join,
    joined,
    refused,
    score,
    select,
    train,
    trained,
)

from fedwinnow.curation.errors import ProtocolError
from fedwinnow.curation.protocol import messages as m
from fedwinnow.strategies.registry import plugin_factory

TERMS = {
    "allow_individual_updates": ({"allow_individual_updates": False}, {}, None),
    "privacy_budget": ({"privacy_budget": 8.0}, {}, None),
    "plugins": (
        {"plugins": ("scorer:ifd", "ordering:shuffled", "objective:sft")},
        {"scorer": {"name": "perplexity"}}, {"scorer": {"name": "ifd"}},
    ),
    "plugins of a comparison": (
        {"plugins": ("scorer:ifd", "ordering:shuffled", "objective:sft")},
        {"scorer": {"name": "ifd", "comparison": ["length"]}},
        {"scorer": {"name": "ifd", "comparison": ["ifd"]}},
    ),
    "plugins of an ordering": (
        {"plugins": ("scorer:calibrated", "ordering:shuffled", "objective:sft")},
        {"training": {"ordering": {"name": "sequential"}}}, {},
    ),
    "plugins of an ordering that ranks": (
        {"plugins": ("scorer:ifd", "ordering:easy_to_hard", "objective:sft")},
        {"scorer": {"name": "ifd"}, "training": {"ordering": {"name": "easy_to_hard"}}},
        {
            "scorer": {"name": "ifd"},
            "training": {"ordering": {"name": "easy_to_hard", "settings": {"scorer": "ifd"}}},
        },
    ),
    "plugin_settings": (
        {"plugin_settings": False},
        {"scorer": {"name": "calibrated", "settings": {"seed_of_nothing": 7}}}, {},
    ),
    "arms": ({}, {"study": {"arms": ["curated", "keep_all"]}}, {"study": {"arms": ["curated"]}}),
    "max_rounds": (
        {"max_rounds": 5}, {"training": {"rounds": 4}}, {"training": {"rounds": 3}},
    ),
    "max_rounds with warm-up": (
        {"max_rounds": 5}, {"warm_up": {"rounds": 3}}, {"warm_up": {"rounds": 2}},
    ),
    "max_steps": ({"max_steps": 23}, {"training": {"steps": 6}}, {"training": {"steps": 5}}),
    "max_steps with warm-up": ({"max_steps": 23}, {"warm_up": {"steps": 5}}, {}),
    "smallest_group of a step": (
        {"smallest_group": 9}, {}, {"training": {"batch_size": 3, "accumulation": 3}},
    ),
    "smallest_group of one sample": ({}, {"training": {"batch_size": 1, "steps": 32}}, {}),
    "max_sample_grad_norm without clipping": ({}, {"training": {"sample_grad_norm": 0.0}}, {}),
    "max_sample_grad_norm": (
        {"max_sample_grad_norm": 0.5}, {}, {"training": {"sample_grad_norm": 0.5}},
    ),
    "min_grad_norm": ({}, {"training": {"max_grad_norm": 1e-16}}, {}),
    "min_grad_norm of a sample": ({}, {"training": {"sample_grad_norm": 1e-9}}, {}),
    "max_learning_rate": ({}, {"training": {"learning_rate": 1e5}}, {}),
    "max_learning_rate of warm-up": ({}, {"warm_up": {"learning_rate": 0.011}}, {}),
    "max_weight_decay": ({}, {"training": {"weight_decay": 0.2}}, {}),
    "max_objective_strength": (
        {}, {"training": {"objective": {"name": "proximal", "settings": {"mu": 1e12}}}},
        {"training": {"objective": {"name": "proximal", "settings": {"mu": 10.0}}}},
    ),
    "max_draws": ({"max_draws": 183}, {}, {"warm_up": {"rounds": 1}}),
    "max_pass_tokens of a batch": ({"max_pass_tokens": 4096}, {"training": {"batch_size": 9}}, {}),
    "max_pass_tokens of measuring": ({}, {"measuring": {"batch_tokens": 10**6}}, {}),
    "max_pass_tokens of a sample": (
        {"max_pass_tokens": 4096}, {"model": {"max_length": 10**4}}, {},
    ),
    "max_repeats of prompts": ({}, {"measuring": {"contrast_prompts": 10**9}}, {}),
    "max_repeats of answers": ({}, {"evaluation": {"generate": 65}}, {}),
    "max_rank": ({"max_rank": 4}, {"adapter": {"rank": 5}}, {"adapter": {"rank": 4}}),
}  # fmt: skip


@pytest.mark.parametrize("case", TERMS)
def test_policy_refuses_terms_by_clause(silo, case):
    """At join: terms that break a clause are refused by its name, those within it are not."""
    section, much, fair = TERMS[case]
    one = silo(**section)
    clause = f"policy.{case.split()[0]}"
    refused(clause, one.ask, join(**much))
    if fair is None:
        one.enact()
        one.ask(join(**much))
    else:
        one.ask(join(**fair))


@pytest.mark.parametrize("case", TERMS)
def test_policy_asks_the_terms_again_at_every_message(silo, case):
    """A clause that is made stricter in the middle of a run ends the run there."""
    section, much, _ = TERMS[case]
    one = silo(**section)
    work = one.work(**much)
    request = m.ProbeRequest(header=head("probe"), adapter=adapter_of())
    refused(f"policy.{case.split()[0]}", one.ask, request, work)
    one.ask(m.CloseRequest(header=head("close")), work)


def test_policy_takes_settings_that_are_the_defaults(silo):
    """``plugin_settings = false`` lets a run spell a default out, and change none."""
    one = silo(plugin_settings=False)
    known = inspect.signature(plugin_factory("scorer", "calibrated")).parameters
    name, parameter = next(iter(known.items()))
    one.ask(join(scorer={"name": "calibrated", "settings": {name: parameter.default}}))


def test_policy_terms_that_are_no_terms(silo):
    """Edge: text that holds no terms is a protocol error, not a crash."""
    with pytest.raises(ProtocolError):
        silo().ask(m.JoinRequest(header=head("join"), terms=json.dumps([1])))


def test_policy_bounds_copies_before_a_file_is_opened(silo):
    """Law: the copies of each anchor are a clause of the terms, asked before the site joins."""
    one = silo()
    refused("policy.max_repeats", one.ask, join(anchors={"copies": 1000}))
    one.ask(join(anchors={"copies": 64}))


PHASES = ("probe", "warm_up", "measure", "score", "select", "train", "evaluate")


def request_of(phase):
    """An allowed request of each phase."""
    made = {
        "probe": m.ProbeRequest(header=head("probe"), adapter=adapter_of()),
        "warm_up": train(phase="warm_up"),
        "measure": m.MeasureRequest(
            header=head("measure", 1), adapter=adapter_of(), checkpoint=1, learning_rate=0.1
        ),
        "score": score(),
        "select": select(),
        "train": train(),
        "evaluate": evaluate(1, "curated"),
    }
    return made[phase]


@pytest.mark.parametrize("phase", PHASES)
def test_policy_answers_the_phases_that_are_allowed(silo, phase):
    """``phases``: a phase outside the list is refused, one inside it, and join, are answered."""
    one = silo(phases=tuple(p for p in PHASES if p != phase))
    work = one.work()
    refused("policy.phases", one.ask, request_of(phase), work)
    one.ask(join())
    one.enact(phases=(phase,))
    one.ask(request_of(phase), work)


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("said", ["join", "close", "probe", "train", "done", "what"])
def test_policy_knows_a_request_under_anothers_phase(silo, phase, said):
    """A request that borrows the phase of another kind gets round no list."""
    request = request_of(phase)
    if said == phase:
        return
    borrowed = replace(request, header=replace(request.header, phase=said))
    one = silo(phases=("probe",))
    refused("policy.phases", one.ask, borrowed, one.work())


def test_policy_before_join(silo):
    """Edge: a request of a run that has not joined is a protocol error."""
    with pytest.raises(ProtocolError, match="join"):
        silo().ask(request_of("probe"), None)


PLACES = {
    "round 0": train(0), "round 4": train(4), "round −1": train(-1),
    "warm-up 3": train(3, "warm_up"), "more steps in all": train(total_steps=16),
    "another offset": train(2, step_offset=0), "a study arm": train(arm="keep_all"),
    "no arm": train(arm=""), "an arm in warm-up": train(phase="warm_up", arm="curated"),
    "checkpoint 3": m.MeasureRequest(
        header=head("measure", 3), adapter=adapter_of(), checkpoint=3, learning_rate=0.0),
    "checkpoint 0": m.MeasureRequest(
        header=head("measure", 0), adapter=adapter_of(), checkpoint=0, learning_rate=0.0),
    "another checkpoint": m.MeasureRequest(
        header=head("measure", 2), adapter=adapter_of(), checkpoint=1, learning_rate=0.0),
    "a second selection": select(number=1),
    "a score with an arm": replace(score(), header=head("score", arm="curated")),
    "a later evaluation": evaluate(4, "curated"), "an evaluation of no arm": evaluate(1),
    "an evaluation of an arm": evaluate(1, "random"), "more answers": evaluate(generate=3),
    "a second probe": m.ProbeRequest(header=head("probe", 1), adapter=adapter_of()),
}  # fmt: skip


@pytest.mark.parametrize("case", PLACES)
def test_policy_holds_a_run_to_its_terms(silo, case):
    """A request that the joined terms do not announce is refused as such."""
    one = silo()
    refused("terms", one.ask, PLACES[case], one.work())


def test_policy_without_a_trajectory_has_no_warm_up(silo):
    """``trajectory = none`` announces no warm-up, whatever its section says."""
    one = silo(max_rounds=3)
    terms = {"run": {"trajectory": "none"}}
    one.ask(join(**terms))
    work = one.work(**terms)
    refused("terms", one.ask, train(phase="warm_up"), work)
    refused("terms", one.ask, request_of("measure"), work)
    one.ask(train(), work)


def test_policy_limits_every_adapter(silo):
    """Rank and megabytes hold for adapters received and sent; just below is allowed."""
    one = silo(max_rank=4, max_adapter_mb=1)
    work = one.work()
    one.ask(train(rank=4), work)
    refused("policy.max_rank", one.ask, train(rank=5), work)
    refused("policy.max_rank", one.ask, evaluate(rank=5), work)
    refused("policy.max_rank", one.policy.release, joined(rank=5), work, one.ledger)
    head_ = head("warm_up", 1)
    refused("policy.max_rank", one.policy.release, trained(head_, rank=5), work, one.ledger)
    fair = replace(train(), adapter=adapter_of(4, 31_250))
    one.ask(fair, work)
    refused("policy.max_adapter_mb", one.ask, replace(fair, adapter=adapter_of(4, 31_251)), work)


def test_policy_pins_the_anchors(silo):
    """Another anchor set than the agreed one is refused at join and at every message."""
    one = silo(anchors_hash="public")
    one.policy.release(joined(), one.work(), one.ledger)
    one.ask(request_of("probe"), one.work())
    other = one.work(anchors="other")
    refused("policy.anchors_hash", one.policy.release, joined("other"), other, one.ledger)
    refused("policy.anchors_hash", one.ask, request_of("probe"), other)
