"""Gradient columns of the last transformer layers alone: the same for every backend."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from warmed import OPTIONS, apart, some, table_of, warmed

from fedwinnow.client.measuring.references import reference_state
from fedwinnow.client.runs.process_cache import ProcessCache
from fedwinnow.client.runs.run_files import RunFiles
from fedwinnow.client.signals.collect import signal_measurer
from fedwinnow.client.site import Site
from fedwinnow.curation.config.load_files import load_scenario, site_configs
from fedwinnow.curation.config.run import RunTerms
from fedwinnow.curation.config.scoring import AdapterSection, MeasuringSection, ModelSection
from fedwinnow.curation.config.site import ComputeSection
from fedwinnow.curation.config.strict_toml import canonical_json
from fedwinnow.curation.errors import ConfigError, ModelError
from fedwinnow.curation.model.lora_model import LoadedModel
from fedwinnow.curation.model.pretrained import encode, load_model
from fedwinnow.curation.model.token_losses import collate, sample_losses
from fedwinnow.curation.protocol.replies import Refusal
from fedwinnow.curation.signal_columns import GRADIENTS, LOSSES
from fedwinnow.server.run.fold import initial_state, next_request
from fedwinnow.simulations.datasets.toy_federation import write_toy_scenario

LAST = ".layers.1."
"""In the names of the second of the tiny model's two layers."""


@pytest.fixture
def model(tiny_model):
    """The tiny model of two layers with B ≠ 0, as after warm-up."""
    warmed(tiny_model)
    return tiny_model


def last_references(model, columns, way="hooks", layers=1):
    """References of six anchors, of the last layers' factors."""
    return reference_state(
        model, some(6, "r"), OPTIONS, columns=frozenset(columns), way=way, layers=layers
    )


def dense(model, samples):
    """Σ over the last layer's weights alone: flat gradients by batch-1 autograd, in float64."""
    weights = [
        factors["default"].weight
        for name, layer in model.layers()
        if LAST in f".{name}"
        for factors in (layer.lora_A, layer.lora_B)
    ]
    rows = []
    for sample in samples:
        loss = sample_losses(model.model, collate([encode(model, sample, max_length=96)]))[0]
        rows.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, weights)]))
    return torch.stack(rows)


def oracle(model, samples):
    """⟨g_i, G_k⟩, ‖g_i‖ and ⟨G_k, G_l⟩ of the last layer, from dense gradients."""
    anchors, own = dense(model, some(6, "r")), dense(model, samples)
    means = torch.stack([anchors[k::2].mean(dim=0) for k in range(2)])  # domains x and y in turn
    return [one.numpy() for one in (own @ means.T, own.norm(dim=1), means @ means.T)]


@pytest.mark.parametrize("backend", ["hooks", "probe", "forward"])
def test_last_layers_equal_the_dense_oracle(model, backend):
    """dot, norm and gram over the last layer's factors, in float64; differences to 0.1 %."""
    model.model.double()
    samples = some(7, "s")
    columns = {"dot"} if backend == "forward" else {"dot", "norm"}
    references = last_references(model, columns, way="probe" if backend == "probe" else "hooks")
    found = table_of(model, samples, references, columns, backend=backend).columns
    dots, norms, gram = oracle(model, samples)
    assert apart(references.gram, gram) <= 1e-7
    assert apart(found["dot"], dots) <= (1e-3 if backend == "forward" else 1e-7)
    assert "norm" not in found or apart(found["norm"], norms) <= 1e-7


def test_all_layers_by_number_are_all_layers(model):
    """As many as there are: bit for bit the references and rows without the setting."""
    samples = some(5, "s")
    one, other = (last_references(model, GRADIENTS, layers=layers) for layers in (0, 2))
    assert np.array_equal(one.gram, other.gram)
    for name, values in table_of(model, samples, one, GRADIENTS).columns.items():
        assert np.array_equal(table_of(model, samples, other, GRADIENTS).columns[name], values)


def test_other_columns_do_not_depend_on_the_layers(model):
    """Losses and representations are those of the whole model."""
    samples, columns = some(5, "s"), LOSSES | {"representation", "dot"}
    whole = table_of(model, samples, last_references(model, columns, layers=0), columns)
    last = table_of(model, samples, last_references(model, columns), columns)
    for name in columns - {"dot"}:
        assert np.array_equal(whole.columns[name], last.columns[name]), name
    assert apart(last.columns["dot"], whole.columns["dot"]) > 0.01


def through(model, work):
    """How often a tensor of each transformer layer ran through backward meanwhile."""
    counts, handles = [0, 0], []
    for place, block in enumerate(model.model.get_base_model().model.layers):

        def watch(_module, _inputs, output, place=place):
            if output.requires_grad:
                output.register_hook(lambda _gradient: counts.__setitem__(place, counts[place] + 1))

        parts = [part for name, part in block.named_modules() if "lora_" not in name]
        linears = [part for part in parts if isinstance(part, torch.nn.Linear)]
        handles += [part.register_forward_hook(watch) for part in linears]
    try:
        work()
    finally:
        for handle in handles:
            handle.remove()
    return counts


@pytest.mark.parametrize("way", ["hooks", "probe"])
@pytest.mark.parametrize("layers", [0, 1])
def test_nothing_below_the_lowest_layer_runs_backward(model, way, layers):
    """References (DataInf's passes too) and rows: no tensor of the first layer has a gradient."""
    found = []

    def make():
        found.append(last_references(model, GRADIENTS, way, layers))

    passes = [
        through(model, make),
        through(model, lambda: table_of(model, some(3, "s"), found[0], GRADIENTS, backend=way)),
    ]
    for lower, upper in passes:
        assert upper > 0
        assert (lower > 0) == (layers == 0)


def test_hooks_begin_the_graph_at_the_lowest_layer(model):
    """What the first layer hands to the second carries no graph, and with all layers it does."""
    for layers, carries in ((1, False), (0, True)):
        references, seen = last_references(model, {"dot"}, layers=layers), []
        block = model.model.get_base_model().model.layers[1]
        handle = block.register_forward_pre_hook(
            lambda _module, inputs, seen=seen: seen.append(inputs[0].requires_grad)
        )
        table_of(model, some(3, "s"), references, {"dot"}, backend="hooks")
        handle.remove()
        assert seen
        assert set(seen) == {carries}


def test_too_many_layers_are_refused_by_name(model):
    """The error names the setting, what came, and how many there are; below 0 is no setting."""
    with pytest.raises(ModelError, match=r"measuring.layers = 3: the model has 2 transformer"):
        last_references(model, {"dot"}, layers=3)
    with pytest.raises(ConfigError, match=r"measuring.layers = -1 .* at least 0"):
        MeasuringSection(layers=-1)


def test_a_site_measures_the_layers_of_its_terms(model, tmp_path):
    """The setting reaches references and rows alike."""
    section = MeasuringSection(batch_tokens=OPTIONS.batch_tokens, layers=1)
    work = SimpleNamespace(
        loaded=model,
        terms=RunTerms(model=ModelSection(max_length=OPTIONS.max_length), measuring=section),
        data=SimpleNamespace(
            split=SimpleNamespace(reference=tuple(some(6, "r"))), anchors_hash="anchors"
        ),
        model=ModelSection(),
        config=SimpleNamespace(compute=ComputeSection()),
        cache=ProcessCache(),
        files=RunFiles(tmp_path),
        pass_options=OPTIONS,
    )
    measures = signal_measurer(work, "adapter", columns=frozenset({"dot"}), checkpoint=1)
    table = measures(some(3, "s"), "a site measures")
    expected = table_of(model, some(3, "s"), last_references(model, {"dot"}), {"dot"})
    assert np.array_equal(table.columns["dot"], expected.columns["dot"])
    assert np.array_equal(table.reference_gram, expected.reference_gram)


def test_too_many_layers_are_refused_at_join(tmp_path):
    """Before anything is measured or trained."""
    toy = write_toy_scenario(tmp_path / "toy", samples=8)
    config = load_scenario(toy, ("measuring.layers=9",))
    site = Site(config=site_configs(config, str(tmp_path / "work"))[1], cache=ProcessCache())
    reply = site.handle(next_request(initial_state(config, "run")))
    assert isinstance(reply, Refusal)
    assert "measuring.layers = 9: the model has 2 transformer layers" in reply.reason


def test_an_adapted_head_counts_among_the_last_layers(tiny_model_folder):
    """The head lies behind every transformer layer."""
    section = AdapterSection(rank=2, targets=("q_proj", "lm_head"))
    loaded = load_model(ModelSection(name=str(tiny_model_folder)), section, seed=0)
    assert list(loaded.last_layers(1)) == ["lm_head", "model.layers.1.self_attn.q_proj"]
    assert loaded.last_layers(2) == loaded.last_layers(0) == dict(loaded.layers())


def test_a_model_without_one_stack_of_layers_is_refused():
    """Two stacks (an encoder and a decoder), or none: no layer is the last."""

    def adapted():
        layer = torch.nn.Linear(2, 2)
        layer.lora_A = layer.scaling = None
        return layer

    def loaded(*parts):
        base = torch.nn.Sequential(*parts)
        base.get_base_model = lambda: SimpleNamespace(get_output_embeddings=lambda: None)
        return LoadedModel(model=base, tokenizer=None, fingerprint="", device=torch.device("cpu"))

    one, other = (torch.nn.ModuleList([adapted(), adapted()]) for _ in range(2))
    assert list(loaded(one).last_layers(1)) == ["0.1"]
    for parts in ((one, other), (adapted(),)):
        with pytest.raises(ModelError, match=r"no single stack of adapted layers"):
            loaded(*parts).last_layers(1)


def test_an_unused_layers_setting_changes_no_terms():
    """The default is not spoken of; another number travels with the terms."""
    assert '"layers"' not in canonical_json(RunTerms())
    assert '"layers":2' in canonical_json(RunTerms(measuring=MeasuringSection(layers=2)))
