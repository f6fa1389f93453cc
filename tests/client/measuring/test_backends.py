"""Four ways to measure, one table: equal where they must be, refused by name where they cannot."""

import logging
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from warmed import OPTIONS, apart, references_of, some, table_of, warmed

from fedwinnow.client.measuring.backends import choose_backend, reference_backend
from fedwinnow.client.runs.process_cache import ProcessCache
from fedwinnow.client.runs.run_files import RunFiles
from fedwinnow.client.signals.collect import signal_measurer
from fedwinnow.curation.config.run import RunTerms
from fedwinnow.curation.config.scoring import (
    MeasuringSection,
    ModelSection,
    RunSection,
    ScorerSection,
)
from fedwinnow.curation.config.strict_toml import canonical_json
from fedwinnow.curation.errors import ModelError, PluginError
from fedwinnow.curation.gradients.finite_differences import FiniteDifferences
from fedwinnow.curation.model.lora_model import get_adapter
from fedwinnow.curation.model.pretrained import encode
from fedwinnow.curation.model.token_losses import collate, sample_losses
from fedwinnow.curation.signal_columns import BACKENDS, GRADIENTS, KNOWN, OTHER_PROMPTS
from fedwinnow.strategies.terms_check import check_terms

OWN = KNOWN - OTHER_PROMPTS


@pytest.fixture
def model(tiny_model):
    """The tiny model with B ≠ 0, as after warm-up."""
    warmed(tiny_model)
    return tiny_model


def exact(model, samples, references):
    """⟨g_i, G_k⟩ and ‖g_i‖ by plain autograd, one sample after the other, in float64."""
    layers = list(model.layers())
    weights = {
        f"{name}.{letter}": factors["default"].weight
        for name, layer in layers
        for letter, factors in (("A", layer.lora_A), ("B", layer.lora_B))
    }
    dots, norms = [], []
    for sample in samples:
        loss = sample_losses(model.model, collate([encode(model, sample, max_length=96)]))[0]
        parts = dict(zip(weights, torch.autograd.grad(loss, list(weights.values())), strict=True))
        dots.append(sum(references.means[n].double() @ g.flatten() for n, g in parts.items()))
        norms.append(sum(g.square().sum() for g in parts.values()).sqrt())
    return torch.stack(dots).numpy(), torch.stack(norms).numpy()


def test_hooks_and_probe_equal_single_samples_in_fp64(model):
    """dot and norm of both, in a model of float64: a float32 table of batch-1 autograd."""
    model.model.double()
    samples = some(7, "s")
    for backend in ("hooks", "probe"):
        references = references_of(model, GRADIENTS, way=backend)
        found = table_of(model, samples, references, {"dot", "norm"}, backend=backend).columns
        dots, norms = exact(model, samples, references)
        assert apart(found["dot"], dots) <= 1e-7
        assert apart(found["norm"], norms) <= 1e-7


def test_probe_equals_hooks_in_every_column(model):
    """References and rows, all columns that have no pass of their own: ≤ 1e-5 of the largest."""
    samples = some(9, "s")
    one, other = (references_of(model, OWN, way=way) for way in ("hooks", "probe"))
    assert apart(other.gram, one.gram) <= 1e-5
    hooks = table_of(model, samples, one, OWN, backend="hooks")
    probe = table_of(model, samples, other, OWN, backend="probe")
    for name, values in hooks.columns.items():
        assert apart(probe.columns[name], values) <= 1e-5, name


@pytest.mark.parametrize(
    ("kind", "tolerance"), [("float64", 1e-3), ("float32", 1e-3), ("bfloat16", 0.06)]
)
def test_forward_equals_hooks_to_its_stated_tolerance(model, kind, tolerance):
    """Share of the largest: 0.1 %, and 6 % where the base is bfloat16; the adapter is put back."""
    for name, parameter in model.model.named_parameters():
        if "lora_" not in name or kind == "float64":
            parameter.data = parameter.data.to(getattr(torch, kind))
    samples, columns, before = some(9, "s"), {"dot", "influence"}, get_adapter(model)
    references = references_of(model, columns)
    hooks = table_of(model, samples, references, columns, backend="hooks").columns
    found = table_of(model, samples, references, columns, backend="forward").columns
    for name in columns:
        assert apart(found[name], hooks[name]) <= tolerance
        assert np.corrcoef(found[name].ravel(), hooks[name].ravel())[0, 1] >= 0.99
    after = get_adapter(model)
    assert all(torch.equal(after.a[n], before.a[n]) for n in before.a)
    assert all(torch.equal(after.b[n], before.b[n]) for n in before.b)


def test_other_columns_are_the_same_for_every_backend(model):
    """Losses, representations and entropies do not depend on how gradients are taken."""
    samples, columns = some(5, "s"), OWN - GRADIENTS | {"dot"}
    references = references_of(model, columns)
    tables = [
        table_of(model, samples, references, columns, backend=one)
        for one in ("hooks", "probe", "forward")
    ]
    for name in OWN - GRADIENTS:
        for table in tables[1:]:
            assert np.array_equal(table.columns[name], tables[0].columns[name]), name


def test_forward_makes_no_graph(model, monkeypatch):
    """Finite differences run without autograd, so a base without a backward pass would do."""
    references = references_of(model, {"dot"})
    monkeypatch.setattr(torch.Tensor, "backward", None)
    seen = []
    call = FiniteDifferences.__call__
    monkeypatch.setattr(
        FiniteDifferences,
        "__call__",
        lambda self, losses: seen.append(losses()) or call(self, losses),
    )
    table_of(model, some(2, "s"), references, {"dot"}, backend="forward")
    assert seen
    assert not any(losses.requires_grad for losses in seen)


def test_columns_that_a_backend_cannot_give_are_refused_by_name(model):
    """The error names the columns, the backend and those that can."""
    references = references_of(model, {"dot"})
    with pytest.raises(ModelError, match=r"'forward'.* norm; choose 'hooks' or 'probe'"):
        table_of(model, some(1, "s"), references, {"dot", "norm"}, backend="forward")
    assert set().union(*BACKENDS.values()) == GRADIENTS


@pytest.mark.parametrize("name", ["less", "cosine", "clues", "calibrated"])
def test_scorers_that_a_backend_cannot_serve_are_refused_by_name(name):
    """Before anything is computed; forward-only signals, where no trajectory is, are no reason."""
    wide = {"signals": ["losses", "gradients"]} if name == "calibrated" else {}
    terms = RunTerms(
        run=RunSection(trajectory="global"),
        measuring=MeasuringSection(backend="forward"),
        scorer=ScorerSection(name=name, settings=wide),
    )
    with pytest.raises(PluginError, match=rf"scorer '{name}' reads .*'forward' cannot"):
        check_terms(terms)
    check_terms(replace(terms, measuring=MeasuringSection()))
    check_terms(replace(terms, scorer=ScorerSection(name="tracin")))
    check_terms(replace(terms, scorer=ScorerSection(name="calibrated")))


def test_auto_takes_hooks_and_says_why(model, caplog):
    """The choice and its reason are one line in the log; an explicit choice names the setting."""
    references = references_of(model, {"dot"})
    with caplog.at_level(logging.INFO, "fedwinnow.client.measuring.backends"):
        auto = table_of(model, some(3, "s"), references, {"dot"})
    assert "measuring with hooks: exact" in caplog.text
    hooks = table_of(model, some(3, "s"), references, {"dot"}, backend="hooks")
    assert np.array_equal(auto.columns["dot"], hooks.columns["dot"])
    assert choose_backend("probe", model).reason == "measuring.backend = 'probe'"


def test_auto_takes_the_probe_where_hooks_see_nothing(model):
    """On a model with a compiled part; references follow, and explicit hooks stay refused."""
    part = model.model.get_base_model().model.layers[0].mlp
    part.compile(backend="eager")  # compiled at its first run, which does not come
    choice = choose_backend("auto", model)
    assert choice.name == "probe"
    assert "compiled" in choice.reason
    assert [reference_backend(one, model) for one in ("auto", "forward", "hooks")] == [
        "probe", "probe", "hooks",
    ]  # fmt: skip
    with pytest.raises(ModelError, match="compiled"):
        references_of(model, {"dot"}, way="hooks")
    with pytest.raises(ModelError, match=r"representation.*compiled"):
        table_of(model, some(1, "s"), references_of(model, set()), {"representation"})


def test_an_unused_backend_setting_changes_no_terms():
    """The default is not spoken of, so ids of runs and what travels stay as they were."""
    assert "backend" not in canonical_json(RunTerms())
    assert '"backend":"probe"' in canonical_json(
        RunTerms(measuring=MeasuringSection(backend="probe"))
    )


@pytest.mark.parametrize(
    ("backend", "said"),
    [
        ("auto", "measuring with hooks"),
        ("probe", "measuring with probe: measuring.backend"),
        ("forward", "measuring with forward"),
    ],
)
def test_a_site_measures_by_the_backend_of_its_terms(model, tmp_path, caplog, backend, said):
    """The setting reaches references and rows alike; the log names what it came to."""
    anchors = SimpleNamespace(reference=tuple(some(6, "r")))
    section = MeasuringSection(batch_tokens=300, backend=backend)
    work = SimpleNamespace(
        loaded=model,
        terms=RunTerms(model=ModelSection(max_length=96), measuring=section),
        data=SimpleNamespace(split=anchors, anchors_hash="anchors"),
        model=ModelSection(),
        cache=ProcessCache(),
        files=RunFiles(tmp_path),
        pass_options=OPTIONS,
    )
    measures = signal_measurer(work, "adapter", columns=frozenset({"dot"}), checkpoint=1)
    with caplog.at_level(logging.INFO):
        table = measures(some(3, "s"), "a site measures")
    assert said in caplog.text
    hooks = table_of(model, some(3, "s"), references_of(model, {"dot"}), {"dot"}, backend="hooks")
    assert apart(table.columns["dot"], hooks.columns["dot"]) <= 1e-3
