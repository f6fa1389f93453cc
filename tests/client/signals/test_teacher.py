"""Laws of the teacher's column and of the student's entropy: exact, forward-only, one at a time."""

import gc
import json
import math
import weakref
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from fedwinnow.client.measuring.measuring_pass import measure
from fedwinnow.client.measuring.pass_options import PassOptions
from fedwinnow.client.runs import process_cache
from fedwinnow.client.runs.process_cache import ProcessCache
from fedwinnow.client.signals import teacher as teaching
from fedwinnow.client.signals.teacher import teacher_confidences
from fedwinnow.client.site import Site
from fedwinnow.curation.config.load_files import load_scenario, site_configs
from fedwinnow.curation.config.run import RunConfig
from fedwinnow.curation.config.scoring import ModelSection, TeacherSection
from fedwinnow.curation.datatypes import Sample, Status
from fedwinnow.curation.errors import ModelError, PluginError
from fedwinnow.curation.model import token_losses
from fedwinnow.curation.model.pretrained import encode, load_teacher
from fedwinnow.curation.model.token_losses import collate, entropies
from fedwinnow.curation.protocol import messages as m
from fedwinnow.server.run.fold import absorb, initial_state, next_request
from fedwinnow.server.run.preflight import check_config
from fedwinnow.simulations.datasets.tiny_model import write_tiny_model
from fedwinnow.simulations.datasets.toy_federation import write_toy_scenario

OPTIONS = PassOptions(batch_tokens=300, max_length=96)
LLKD = ("scorer.name=llkd", "training.rounds=0", "run.trajectory=none")


def some(number):
    """Samples of several lengths; the last one has no answer."""
    made = [
        Sample(
            id=f"s{i}",
            prompt=f"tell me {i} " + "why " * (i % 4),
            response="because " + "so " * (i % 5) + str(i * 7),
            domain="xy"[i % 2],
        )
        for i in range(number)
    ]
    return [*made, Sample(id="none", prompt="a" * 200, response="b", domain="x")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A toy federation beside a teacher that is larger than its base."""
    folder = tmp_path_factory.mktemp("taught")
    write_toy_scenario(folder, samples=6)
    write_tiny_model(folder / "teacher", seed=9, hidden=48, layers=3)
    return folder


@pytest.fixture(scope="module")
def teacher(folder):
    """The loaded teacher."""
    return load_teacher(TeacherSection(name=str(folder / "teacher")), student_of(folder))


def student_of(folder: Path) -> ModelSection:
    """The base of the toy federation."""
    return ModelSection(name=str(folder / "model"), max_length=96)


def config_of(folder: Path, *overrides: str) -> RunConfig:
    """The toy run with a teacher and scorer llkd."""
    return load_scenario(folder / "scenario.toml", (*LLKD, "teacher.name=teacher", *overrides))


def site_of(config: RunConfig, work: Path, place: int = 0, **changes) -> Site:
    """A site of its own folder and cache."""
    own = site_configs(config, str(work))[place]
    return Site(config=replace(own, **changes), cache=ProcessCache())


def log_probabilities(loaded, sample):
    """Slow and plain: all logits of one sample, in fp64; places of its body."""
    encoding = encode(loaded, sample, max_length=96)
    batch = collate([encoding])
    with torch.no_grad():
        logits = loaded.model(input_ids=batch.tokens, attention_mask=batch.mask).logits[0]
    places = range(encoding.response_start, encoding.body_end)
    return [(logits[t - 1].double().log_softmax(-1), int(batch.tokens[0, t])) for t in places]


def test_teacher_confidence_equals_a_loop_of_single_samples(teacher):
    """Mean probability of the body's tokens: ≤ 1e-5 from batch-1 logits; NaN without a body."""
    samples = some(9)
    found = teacher_confidences(teacher, samples, OPTIONS)
    expected = [
        np.mean([float(line[token].exp()) for line, token in log_probabilities(teacher, sample)])
        for sample in samples[:-1]
    ]
    assert np.abs(found[:-1] - expected).max() <= 1e-5
    assert np.isnan(found[-1]) != encode(teacher, samples[-1], max_length=96).has_target
    other = teacher_confidences(teacher, samples[::-1], replace(OPTIONS, batch_tokens=96))[::-1]
    assert np.allclose(found, other, atol=1e-6, equal_nan=True)


def test_student_entropy_equals_a_loop_of_single_samples(tiny_model):
    """Mean predictive entropy over log vocabulary: ≤ 1e-5 from batch-1 full logits, in [0, 1]."""
    samples = some(9)[:-1]
    table = entropy_table(tiny_model, samples, {"student_entropy", "loss"})
    expected = []
    for sample in samples:
        lines = [line for line, _ in log_probabilities(tiny_model, sample)]
        each = [float(-(line.exp() * line).sum()) / math.log(len(line)) for line in lines]
        expected.append(np.mean(each))
    found = table.columns["student_entropy"]
    assert np.abs(found - expected).max() <= 1e-5
    assert ((found >= 0) & (found <= 1)).all()


def entropy_table(loaded, samples, columns):
    """A measuring pass without references."""
    return measure(
        loaded,
        samples,
        OPTIONS,
        columns=frozenset(columns),
        checkpoint=0,
        references=None,
        contrast=(),
        contrast_prompts=0,
    )


def test_entropy_costs_no_pass_and_no_logits_more(tiny_model):
    """The head runs as often, on as many states, with the column as without; losses stay equal."""
    rows: list[int] = []
    head = tiny_model.model.get_output_embeddings()
    handle = head.register_forward_hook(lambda _m, _i, out: rows.append(out[..., 0].numel()))
    samples = some(9)[:-1]
    plain = entropy_table(tiny_model, samples, {"loss"})
    before = list(rows)
    rows.clear()
    both = entropy_table(tiny_model, samples, {"loss", "student_entropy"})
    handle.remove()
    assert rows == before
    assert np.array_equal(plain.columns["loss"], both.columns["loss"])


def test_entropies_know_their_bounds(monkeypatch):
    """Uniform is 1, certain is 0, −inf is impossible, NaN stays; pieces equal the whole."""
    uniform, certain = torch.zeros(1, 50), torch.full((1, 50), -1e4)
    certain[0, 3] = 1e4
    half = torch.full((1, 50), float("-inf"))
    half[0, :2] = 0.0
    rows = torch.cat([uniform, certain, half, torch.full((1, 50), float("nan"))])
    found = entropies(rows)
    assert found[0] == pytest.approx(1.0, abs=1e-6)
    assert found[1] == 0.0
    assert found[2] == pytest.approx(math.log(2) / math.log(50), rel=1e-6)
    assert bool(found[3].isnan())
    logits = torch.randn(7, 50, generator=torch.Generator().manual_seed(0), dtype=torch.float16)
    whole = entropies(logits)
    monkeypatch.setattr(token_losses, "_CHUNK", 60)
    assert torch.equal(entropies(logits), whole)
    assert whole.dtype == torch.float32
    assert entropies(logits[:0]).shape == (0,)
    assert float(entropies(torch.zeros(1, 1))) == 0.0


def test_teacher_and_student_are_never_in_memory_together(folder, tmp_path, monkeypatch):
    """From join to the signals at most one model lives after any load."""
    alive: list[weakref.ref] = []
    most: list[int] = []

    def counted(load):
        def loading(*args, **kwargs):
            most.append(sum(one() is not None for one in alive) + 1)
            loaded = load(*args, **kwargs)
            alive.append(weakref.ref(loaded.model))
            return loaded

        return loading

    monkeypatch.setattr(process_cache, "load_model", counted(process_cache.load_model))
    monkeypatch.setattr(teaching, "load_teacher", counted(teaching.load_teacher))
    walk(site_of(config_of(folder), tmp_path), config_of(folder))
    assert most == [1] * 4  # teacher and base at join; teacher and base again at probe
    gc.collect()
    assert sum(one() is not None for one in alive) <= 1


def walk(site: Site, config: RunConfig, until: str = "done"):
    """A run with this one site, up to a phase."""
    state = initial_state(config, "toy-run")
    while (request := next_request(state)) is not None and state.phase != until:
        state = absorb(state, {site.name: site.answer(request)})
    return state


def test_teacher_column_lies_beside_the_student_s(folder, tmp_path):
    """At checkpoint 0 the agreed public rows hold both columns, equal to the slow ones by row."""
    config = config_of(folder)
    site = site_of(config, tmp_path)
    state = walk(site, config)
    table = state.tables[0]
    assert set(table.columns) == {"teacher_confidence", "student_entropy"}
    assert state.members[0].teacher != state.members[0].base
    rows = {sample.id: sample for sample in site.run_of("toy-run").data.rows.samples}
    teacher = load_teacher(site.run_of("toy-run").teacher, student_of(folder))
    for place in (0, 3):
        lines = log_probabilities(teacher, rows[table.ids[place]])
        expected = np.mean([float(line[token].exp()) for line, token in lines])
        assert table.columns["teacher_confidence"][place] == pytest.approx(expected, abs=1e-5)


def test_teacher_that_says_nan_marks_the_sample(tmp_path, folder, monkeypatch):
    """A sample on which the teacher gives a NaN has no signals and no score, and says why."""
    config = config_of(folder)
    site = site_of(config, tmp_path)
    real = teaching.teacher_confidences

    def broken(teacher, samples, *rest):
        values = real(teacher, samples, *rest)
        values[0] = np.nan
        return values

    monkeypatch.setattr(teaching, "teacher_confidences", broken)
    state = walk(site, config)
    assert len(state.tables[0].ids) == len(site.run_of("toy-run").data.rows.samples) - 1
    from fedwinnow.client.runs import tables

    kept = tables.read_signals(site.run_of("toy-run").folder / "signals-0.parquet")
    assert kept.status[0] == Status.NON_FINITE
    assert all(np.isnan(values[0]) for values in kept.columns.values())


def test_without_a_teacher_llkd_is_refused_at_once(folder, tmp_path):
    """Scenario and site name the scorer and the setting, before anything is loaded or computed."""
    config = config_of(folder)
    bare = replace(config, teacher=TeacherSection())
    with pytest.raises(PluginError, match=r"scorer 'llkd' needs a teacher, and teacher.name is"):
        check_config(bare)
    beside = replace(bare, scorer=replace(bare.scorer, name="ira", comparison=("llkd",)))
    with pytest.raises(PluginError, match="scorer 'llkd' needs a teacher"):
        check_config(beside)
    site = site_of(config, tmp_path, teacher=TeacherSection())
    reply = site.handle(next_request(initial_state(config, "toy-run")))
    assert isinstance(reply, m.Refusal)
    assert reply.clause == "terms"
    assert "teacher.name is empty" in reply.reason


def test_teacher_with_other_tokens_is_refused_by_name(folder, tmp_path):
    """Another number for a token: the setting, both sides and a cure; no folder: the setting."""
    other = write_tiny_model(tmp_path / "other", seed=1)
    file = other / "tokenizer.json"
    tree = json.loads(file.read_text())
    vocabulary = tree["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    file.write_text(json.dumps(tree))
    section = TeacherSection(name=str(other))
    with pytest.raises(ModelError, match=r"teacher.name: .*other.* 2 tokens differ, such as 'a'"):
        load_teacher(section, student_of(folder))
    with pytest.raises(ModelError, match=r"teacher.name: the tokenizer of .*nowhere"):
        load_teacher(TeacherSection(name=str(tmp_path / "nowhere")), student_of(folder))


def test_teacher_that_changed_since_join_is_refused(folder, tmp_path):
    """Other weights under the same name between join and probe: no column is made of them."""
    config = config_of(folder)
    held = write_tiny_model(tmp_path / "held", seed=9, hidden=48, layers=3)
    site = site_of(config, tmp_path / "work", teacher=TeacherSection(name=str(held)))
    state = walk(site, config, until="probe")
    write_tiny_model(held, seed=10, hidden=48, layers=3)
    with pytest.raises(ModelError, match="when the site joined"):
        site.answer(next_request(state))


def test_sites_with_another_teacher_are_no_members(folder, tmp_path):
    """At join the majority's teacher counts, as its base does; the other site is named."""
    config = config_of(folder)
    other = TeacherSection(name=str(write_tiny_model(tmp_path / "strange", seed=1, hidden=48)))
    sites = [site_of(config, tmp_path / "work", place) for place in range(2)]
    sites.append(site_of(config, tmp_path / "work", 2, teacher=other))
    state = initial_state(config, "toy-run")
    request = next_request(state)
    state = absorb(state, {site.name: site.answer(request) for site in sites})
    assert state.sites == ("north", "south")
    assert state.records[0].missing["west"].startswith("teacher ")
