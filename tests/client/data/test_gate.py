"""The gate: licences, duplicates, anchors, in the order of the data."""

import re
from dataclasses import replace

import numpy as np
import pytest

from fedwinnow.client.data.content_id import content_id
from fedwinnow.client.data.corruption import corrupt
from fedwinnow.client.data.gate import apply_gates, near_duplicates, overlaps_anchors
from fedwinnow.client.data.samples import open_samples
from fedwinnow.curation.config.scoring import ColumnsSection
from fedwinnow.curation.config.site import GateSection
from fedwinnow.curation.datatypes import Sample, Turn
from fedwinnow.curation.seeds import derive_seed

VOCABULARY = [f"word{number}" for number in range(2000)]


def text(seed, number):
    random = np.random.default_rng(derive_seed(0, seed))
    return " ".join(VOCABULARY[i] for i in random.integers(len(VOCABULARY), size=number))


def sample(prompt, response, **more):
    history = more["history"] = tuple(Turn(*turn) for turn in more.get("history", ()))
    return Sample(
        id=content_id(history, prompt, response), prompt=prompt, response=response, **more
    )


def changed(words, *places):
    """The text with other words at some places."""
    found = words.split()
    for place in places:
        found[place] = "changed"
    return " ".join(found)


def brute_force(samples, threshold):
    """The rule without any index: each sample against every one kept before."""
    kept = []
    for row, one in enumerate(samples):
        if not any(near_duplicates(one, samples[other], threshold) for other in kept):
            kept.append(row)
    return tuple(kept)


@pytest.mark.parametrize("threshold", [0.4, 0.7, 0.9, 1.0])
def test_gate_equals_comparing_all_pairs(threshold):
    """Oracle: candidates and exact check find what the comparison of all pairs finds."""
    random = np.random.default_rng(7)
    samples = []
    for number in range(60):
        prompt, response = text(f"p{number}", 12), text(f"r{number}", 40)
        samples.append(sample(prompt, response))
        for _ in range(random.integers(3)):
            places = random.permutation(40)[: random.choice([0, 1, 2, 4, 8])]
            samples.append(sample(prompt, changed(response, *places)))
    samples = [samples[i] for i in random.permutation(len(samples))]
    kept = apply_gates(samples, (), GateSection(near_duplicates=threshold)).kept
    assert kept == brute_force(samples, threshold)
    assert len(kept) < len(samples)


def test_gate_keeps_the_first_of_duplicates():
    """Law: exact and near duplicates of a kept sample go, with the reason; the first one stays."""
    prompt, response = text("p", 10), text("r", 60)
    samples = [
        sample(text("a", 9), text("b", 30)),
        sample(prompt, response),
        sample(prompt, response),
        sample(prompt, f"{response} indeed"),
        sample(f"{prompt.upper()}?", f"  {response}."),
    ]
    found = apply_gates(samples, (), GateSection())
    assert found.kept == (0, 1)
    assert found.reasons == {2: "exact duplicate", 3: "near duplicate", 4: "near duplicate"}


def test_gate_of_one_threshold_takes_equal_words_only():
    """Edge: at 1 only texts with the same words in the same order are near duplicates."""
    prompt, response = text("p", 10), text("r", 60)
    samples = [sample(prompt, r) for r in (response, response.upper(), changed(response, 30))]
    assert apply_gates(samples, (), GateSection(near_duplicates=1.0)).kept == (0, 2)


@pytest.mark.parametrize("length", [3, 30, 300, 3000])
def test_swapped_answer_is_no_duplicate(length):
    """Law: the same answer under another prompt stays, however long the answer is."""
    clean = [
        sample(text("p0", 12), text("r0", length), domain="law"),
        sample(text("p1", 12), text("r1", length), domain="law"),
    ]
    swapped = corrupt(clean[0], "swap", pool=clean, seed=0)
    assert swapped.response == clean[1].response
    assert apply_gates([swapped, *clean], (), GateSection()).kept == (0, 1, 2)
    assert apply_gates([swapped, *clean], (), GateSection(near_duplicates=0.5)).kept == (0, 1, 2)


def test_short_answers_about_one_passage_are_no_duplicates():
    """Law: one long prompt with two different short answers is two samples."""
    passage = text("passage", 300)
    samples = [sample(passage, "Yes."), sample(passage, "No."), sample(passage, "yes")]
    found = apply_gates(samples, (), GateSection())
    assert found.kept == (0, 1)
    assert found.reasons == {2: "near duplicate"}


def test_history_tells_samples_apart():
    """Law: the same last exchange after another conversation is another sample."""
    turns = [(("user", text(f"h{i}", 40)), ("assistant", text(f"a{i}", 40))) for i in range(2)]
    samples = [sample("go on", "I cannot say", history=history) for history in turns]
    assert apply_gates(samples, (), GateSection()).kept == (0, 1)


def test_gate_applies_the_allow_list_of_licences():
    """Law: with an allow-list other licences, and none at all, are left out; without, all pass."""
    samples = [
        sample(f"prompt {name}", text(name, 20), labels={"licence": name} if name else {})
        for name in ("CC0", "GPL", "")
    ]
    found = apply_gates(samples, (), GateSection(licences=("CC0", "MIT")))
    assert found.kept == (0,)
    assert found.reasons == {1: "licence 'GPL' is not allowed", 2: "licence '' is not allowed"}
    assert apply_gates(samples, (), GateSection()).kept == (0, 1, 2)


def test_dropped_sample_shadows_none():
    """Law: a copy of a sample that its licence dropped is kept in its place."""
    first = sample("p", text("r", 20), labels={"licence": "GPL"})
    samples = [first, replace(first, labels={"licence": "MIT"})]
    assert apply_gates(samples, (), GateSection(licences=("MIT",))).kept == (1,)


def test_gate_drops_what_overlaps_the_anchors():
    """Law: equal or near equal to an anchor as a whole, or by a long response alone, goes."""
    anchor = sample("What is iron?", text("anchor", 30))
    short = sample(text("long prompt", 30), "A metal.")
    samples = [
        anchor,
        sample(anchor.prompt, f"{anchor.response} indeed"),
        sample("Quite another question?", anchor.response),
        sample("Another one", "A metal."),
        sample(
            short.prompt, short.response, history=(Turn("user", "hello"), Turn("assistant", "hi"))
        ),
        sample("What is iron?", text("own", 30)),
    ]
    found = apply_gates(samples, (anchor, short), GateSection())
    assert found.kept == (3, 5)
    assert set(found.reasons.values()) == {"equals or nearly equals a public anchor"}
    assert overlaps_anchors(samples, (anchor, short), 0.9) == (0, 1, 2, 4)


@pytest.mark.parametrize(("length", "expected"), [(7, ()), (8, (0,))])
def test_response_alone_counts_from_eight_words(length, expected):
    """Edge: a response of seven words under another prompt passes, one of eight overlaps."""
    answer = text("answer", length)
    samples = [sample(text("own", 40), answer)]
    assert overlaps_anchors(samples, [sample(text("public", 40), answer)], 0.9) == expected


def test_gate_of_nothing_is_nothing():
    """Edge: no samples, no anchors, one sample, empty texts."""
    assert apply_gates((), (), GateSection()).kept == ()
    assert overlaps_anchors((), (), 0.9) == ()
    one = sample("p", "r")
    assert apply_gates((one,), (), GateSection()).kept == (0,)
    assert apply_gates((one,), (one,), GateSection()).kept == ()
    empty = sample("", "")
    assert apply_gates((empty, one, empty), (), GateSection()).kept == (0, 1)


def test_gate_reads_samples_from_the_disk(tmp_path):
    """Equivalence: lazy samples and a list of them pass the gate alike."""
    import json

    rows = [{"prompt": text(i // 2, 10), "response": text(-1 - i // 2, 40)} for i in range(40)]
    path = tmp_path / "x.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    lazy = open_samples(str(path), ColumnsSection())
    anchors = lazy.subset([0])
    found = apply_gates(lazy, anchors, GateSection())
    assert found == apply_gates(list(lazy), list(anchors), GateSection())
    assert found.kept == tuple(range(2, 40, 2))


def test_templates_do_not_slow_the_gate():
    """Scale: 1500 samples of one template are told apart in seconds, not minutes."""
    import time

    template = text("template", 60)
    samples = [sample(f"{template} {text(i, 10)}", text(-1 - i, 30)) for i in range(1500)]
    start = time.perf_counter()
    assert len(apply_gates(samples, (), GateSection()).kept) == 1500
    assert time.perf_counter() - start < 20


@pytest.mark.parametrize(("setting", "kept"), [("text", (0, 1, 2)), ("drop", (0,))])
def test_control_tokens_in_texts_are_counted_and_dropped_where_asked(setting, kept):
    """Law: who spells a control token, be it in a call, is counted, and dropped if set."""
    call = '{"tool_calls": [{"function": {"arguments": {"q": "<\\uff5cend\\uff5c>"}}}]}'
    samples = [
        sample("q1", "one"),
        sample("q2 <eot>", "two"),
        sample("q3", "three", followup=(Turn("assistant", "", call),)),
    ]
    control = re.compile("<eot>|<\uff5cend\uff5c>")
    found = apply_gates(samples, (), GateSection(control_tokens=setting), control)
    assert found.kept == kept
    assert found.control_tokens == 2
    assert [("<eot>" in why, "end" in why) for why in found.reasons.values()] == (
        [(True, False), (False, True)] if setting == "drop" else []
    )
