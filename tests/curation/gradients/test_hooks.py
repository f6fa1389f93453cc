"""Laws of per-sample LoRA gradients: exact in every precision, loud where they cannot be."""

import copy
import gc
from collections import Counter
from contextlib import nullcontext
from functools import partial

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from fedwinnow.curation.datatypes import Adapter, Sample
from fedwinnow.curation.errors import ModelError, RunError
from fedwinnow.curation.gradients.contraction import Contraction
from fedwinnow.curation.gradients.hooks import _products, check_hookable, sample_gradients
from fedwinnow.curation.model.lora_model import get_adapter, set_adapter
from fedwinnow.curation.model.modes import evaluation_mode
from fedwinnow.curation.model.pretrained import encode
from fedwinnow.curation.model.token_losses import collate, sample_losses, token_losses


@pytest.fixture
def model(tiny_model):
    """The tiny model with B ≠ 0."""
    start, draw = get_adapter(tiny_model), torch.Generator().manual_seed(2)
    b = {k: torch.randn(v.shape, generator=draw) * 0.1 for k, v in start.b.items()}
    set_adapter(tiny_model, Adapter(base=start.base, a=start.a, b=b, scales=start.scales))
    return tiny_model


def batch_of(loaded, number=3):
    samples = [
        Sample(id=f"g{i}", prompt="why " * (i + 1), response="so " * (3 - i % 3) + str(i))
        for i in range(number)
    ]
    return collate([encode(loaded, sample, max_length=64) for sample in samples])


def collected(loaded, net, batch):
    """Factor → per-sample gradients by hooks."""
    found = {}
    with sample_gradients(net, dict(loaded.layers()), found.__setitem__) as firing:
        sample_losses(net, batch).sum().backward()
        firing.check()
    return found


def looped(net, encodings):
    """Factor → per-sample gradients, one autograd pass a sample."""
    lora = {name: p for name, p in net.named_parameters() if "lora_" in name}
    rows = []
    for encoding in encodings:
        loss = sample_losses(net, collate([encoding]))[0]
        rows.append(torch.autograd.grad(loss, list(lora.values())))
    stacked = [torch.stack(parts) for parts in zip(*rows, strict=True)]
    return {factor_name(name): part for name, part in zip(lora, stacked, strict=True)}


def factor_name(parameter):
    """MODULE.A or MODULE.B of a parameter's name."""
    name = parameter.removeprefix("base_model.model.").removesuffix(".default.weight")
    return name.replace(".lora_", ".")


def lora_layers(net):
    return {n: m for n, m in net.named_modules() if hasattr(m, "lora_A") and hasattr(m, "scaling")}


def base_of(folder):
    return AutoModelForCausalLM.from_pretrained(folder)


@pytest.mark.parametrize(("kind", "bound"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
def test_gradients_of_every_factor_equal_single_sample_autograd(model, kind, bound):
    """Each factor's gradients, within 1e-5 of the largest in float32 and 1e-12 in float64."""
    net = model.model.to(kind)
    samples = [Sample(id=f"l{i}", prompt="p" * i, response="abc"[: 1 + i % 3]) for i in range(5)]
    encodings = [encode(model, sample, max_length=64) for sample in samples]
    expected = looped(net, encodings)
    found = collected(model, net, collate(encodings))
    assert set(found) == set(expected)
    for name, part in found.items():
        assert part.dtype == kind
        assert (part - expected[name]).abs().max() <= bound * expected[name].abs().max(), name


@pytest.mark.filterwarnings(
    "ignore:.*torch.jit.script.*:DeprecationWarning"  # torch imports it itself
)
def test_dot_equals_forward_mode_in_fp64_throughout(model, monkeypatch):
    """⟨g_i, G⟩ = d/dε ℓ_i(θ + εG) by forward mode, to 1e-12 of the largest.

    Llama's norms and attention weights are float32 whatever its weights are; here float64.
    """
    net, batch = model.model.double(), batch_of(model)
    net.set_attn_implementation("eager")
    for part in net.modules():
        if type(part).__name__ == "LlamaRMSNorm":
            monkeypatch.setattr(part, "forward", partial(norm_in_fp64, part))
    softmax = torch.softmax
    monkeypatch.setattr(
        torch.nn.functional, "softmax", lambda scores, dim, dtype=None: softmax(scores, dim)
    )
    draw = torch.Generator().manual_seed(0)
    lora = {n: p.detach() for n, p in net.named_parameters() if "lora_" in n}
    way = {n: torch.randn(p.shape, generator=draw, dtype=p.dtype) for n, p in lora.items()}
    contraction = Contraction(
        references={factor_name(n): g.flatten()[None] for n, g in way.items()}
    )
    with sample_gradients(net, dict(model.layers()), contraction):
        sample_losses(net, batch).sum().backward()
    inputs = {"input_ids": batch.tokens, "attention_mask": batch.mask, "use_cache": False}
    places = batch.targets[:, 1:].double()

    def losses(own):
        logs = torch.func.functional_call(net, own, (), inputs).logits[:, :-1].log_softmax(-1)
        picked = logs.gather(2, batch.tokens[:, 1:, None])[:, :, 0]
        return -(picked * places).sum(1) / places.sum(1)

    expected = torch.func.jvp(losses, (lora,), (way,))[1]
    assert (contraction.dots[:, 0] - expected).abs().max() <= 1e-12 * expected.abs().max()


def norm_in_fp64(part, states):
    spread = states.square().mean(-1, keepdim=True) + part.variance_epsilon
    return part.weight * states * spread.rsqrt()


def test_dots_are_additive_over_layers(model):
    """The dot over all layers is the sum of those over single layers."""
    batch, draw = batch_of(model), torch.Generator().manual_seed(0)
    layers = dict(model.layers())
    references = {
        f"{name}.{letter}": torch.randn(
            2, getattr(layer, f"lora_{letter}")["default"].weight.numel(), generator=draw
        )
        for name, layer in layers.items()
        for letter in "AB"
    }

    def dots(chosen):
        contraction = Contraction(references=references)
        with sample_gradients(model.model, chosen, contraction) as firing:
            sample_losses(model.model, batch).sum().backward()
            firing.check()
        return contraction.dots

    parts = sum(dots({name: layer}) for name, layer in layers.items())
    whole = dots(layers)
    assert (whole - parts).abs().max() <= 1e-5 * whole.abs().max()


def test_modes_of_all_modules_are_restored(model):
    """A part that was in eval mode is so afterwards, though the model trains."""
    net = model.model.train()
    quiet = dict(model.layers()).popitem()[1].eval()
    with evaluation_mode(net):
        assert not any(module.training for module in net.modules())
    assert not quiet.training
    assert net.training
    assert sum(not module.training for module in net.modules()) == len(list(quiet.modules()))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA has a kernel of its own for this")
@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16])
def test_products_of_half_precision_are_summed_in_fp32_on_a_gpu(kind):
    """Within 1e-5 of the largest product in float64: no sum was rounded to half precision."""
    gradient, given = (torch.randn(3, 4096, n, device="cuda").to(kind) for n in (4, 8))
    found = _products(gradient, given)
    expected = torch.einsum("ito,itc->ioc", gradient.double(), given.double())
    assert found.dtype == torch.float32
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()


class Halved(torch.nn.Linear):
    """A factor with code of its own."""

    def forward(self, given):
        """Half of what a factor gives."""
        return torch.nn.functional.linear(given, self.weight) / 2


@pytest.mark.parametrize("own", ["", "class", "forward"])
@pytest.mark.parametrize(("kind", "bound"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
def test_trained_weights_get_the_gradients_of_autograd(model, kind, bound, own, monkeypatch):
    """Two batches in training mode: each weight's gradient, also of factors with own code."""
    net, layers = model.model.to(kind).train(), dict(model.layers())
    for factor in [layer.lora_B["default"] for layer in layers.values()]:
        if own == "class":
            monkeypatch.setattr(factor, "__class__", Halved)
        elif own == "forward":
            monkeypatch.setattr(factor, "forward", partial(Halved.forward, factor))

    def taken(watch):
        net.zero_grad()
        for number in (3, 5):
            with watch() as firing:
                own = [layer.lora_A["default"] for layer in layers.values()]
                assert all(("forward" in vars(factor)) == bool(firing) for factor in own)
                sample_losses(net, batch_of(model, number)).sum().backward()
        return {n: p.grad.clone() for n, p in net.named_parameters() if p.requires_grad}

    expected = taken(nullcontext)
    counted = Counter()
    found = taken(
        lambda: sample_gradients(net, layers, lambda n, _: counted.update([n]), training=True)
    )
    assert set(counted.values()) == {2}
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        assert values.dtype == kind
        assert (found[name] - values).abs().max() <= bound * values.abs().max(), name


def test_inputs_are_let_go_in_the_backward_pass(model):
    """No hidden state outlives the backward pass, though the losses do."""
    batch = batch_of(model)

    def activations():
        gc.collect()
        tensors = [one for one in gc.get_objects() if type(one) is torch.Tensor]
        return sum(one.shape == (*batch.tokens.shape, 32) for one in tensors)

    before = activations()
    with sample_gradients(model.model, dict(model.layers()), lambda *_: None):
        losses = sample_losses(model.model, batch)
        assert activations() > before
        losses.sum().backward()
        assert activations() == before
    assert losses.shape == (3,)


def test_graph_begins_at_the_first_factor(model):
    """Below the first factor A nothing requires a gradient, so nothing is computed there."""
    needs = []
    hook = model.model.get_input_embeddings().register_forward_hook(
        lambda _m, _i, output: needs.append(output.requires_grad)
    )
    collected(model, model.model, batch_of(model))
    hook.remove()
    assert needs == [False]


@pytest.mark.parametrize("training", [False, True])
def test_failure_inside_leaves_the_model_as_it_was(model, training):
    """An error in the block removes hooks and restores code, flags and modes."""
    net = model.model.train()
    flags = [p.requires_grad for p in net.parameters()]

    def fails(*_):
        raise ZeroDivisionError

    watch = sample_gradients(net, dict(model.layers()), fails, training=training)
    with pytest.raises(ZeroDivisionError), watch:
        sample_losses(net, batch_of(model)).sum().backward()
    assert [p.requires_grad for p in net.parameters()] == flags
    assert net.training
    assert not any("forward" in vars(part) for part in net.modules())
    check_hookable(net, dict(model.layers()))  # no hook is left


def test_trap_frozen_parameters_get_no_gradient(model):
    """Inside nothing requires a gradient, so data-parallel wrappers have nothing to reduce."""
    with sample_gradients(model.model, dict(model.layers()), lambda *_: None):
        assert not any(p.requires_grad for p in model.model.parameters())
        sample_losses(model.model, batch_of(model)).sum().backward()
    assert all(p.grad is None for p in model.model.parameters())


def test_trap_left_hooks_are_refused(model):
    """A collector inside another, or any hook on a factor, is refused by name."""
    layers = dict(model.layers())
    inside = sample_gradients(model.model, layers, lambda *_: None)
    with inside, pytest.raises(ModelError, match="hooks are left"):
        check_hookable(model.model, layers)
    check_hookable(model.model, layers)


def test_trap_module_compiled_in_place_is_refused(model):
    """``module.compile()`` leaves no wrapper behind, and is seen all the same."""
    block = model.model.get_base_model().model.layers[0]
    block._compiled_call_impl = block.forward  # what block.compile() sets, without its start-up
    with pytest.raises(ModelError, match="compiled"):
        check_hookable(model.model, dict(model.layers()))


@pytest.mark.filterwarnings("ignore:.lora_bias=True. was passed")  # of merging, which is not asked
@pytest.mark.parametrize(
    ("option", "match"),
    [({"lora_bias": True}, "biases"), ({"use_dora": True}, "DoRA")],
)
def test_trap_variant_of_lora_is_refused(tiny_model_folder, option, match):
    """Biases of the adapter and DoRA are refused by name."""
    config = LoraConfig(target_modules=["q_proj"], init_lora_weights=False, **option)
    net = get_peft_model(base_of(tiny_model_folder), config)
    with pytest.raises(ModelError, match=match):
        check_hookable(net, lora_layers(net))


def test_trap_other_variant_is_refused_by_its_name(model):
    """Whatever PEFT runs instead of B(A(x)) is named."""
    name, layer = next(model.layers())
    layer.lora_variant["default"] = object()
    with pytest.raises(ModelError, match=rf"{name} has the LoRA variant object"):
        check_hookable(model.model, dict(model.layers()))


def test_trap_adapter_of_an_embedding_is_refused(tiny_model_folder):
    """An embedding has no linear factors."""
    config = LoraConfig(target_modules=["q_proj", "embed_tokens"], init_lora_weights=False)
    net = get_peft_model(base_of(tiny_model_folder), config)
    with pytest.raises(ModelError, match="embed_tokens has no linear factors"):
        check_hookable(net, lora_layers(net))


def test_trap_model_without_adapter_is_refused(tiny_model_folder):
    """No LoRA layer, nothing to measure."""
    with pytest.raises(ModelError, match="no LoRA layer"):
        check_hookable(base_of(tiny_model_folder), {})


def test_trap_routed_experts_are_refused(model):
    """A module that sees tokens without their samples is named."""
    name, layer = next(model.layers())
    inside = sample_gradients(model.model, {name: layer}, lambda *_: None)
    with inside, pytest.raises(ModelError, match=r"2 axes.*experts"):
        layer(torch.zeros(5, layer.in_features))


def test_trap_module_used_twice_is_refused(model):
    """Two decoder layers that are one module: its norm is not the sum of its calls'."""
    net = copy.deepcopy(model.model)
    blocks = net.get_base_model().model.layers
    blocks[1] = blocks[0]
    with sample_gradients(net, lora_layers(net), lambda *_: None) as firing:
        sample_losses(net, batch_of(model)).sum().backward()
        with pytest.raises(RunError, match="fired 2 times in the forward pass"):
            firing.check()


def test_trap_recomputed_layers_are_refused(model):
    """Activation checkpointing that does run is an error, not a wrong number."""
    from torch.utils.checkpoint import checkpoint

    block = model.model.get_base_model().model.layers[0]
    forward = block.forward
    block.forward = lambda *a, **k: checkpoint(forward, *a, use_reentrant=False, **k)
    with sample_gradients(model.model, dict(model.layers()), lambda *_: None) as firing:
        sample_losses(model.model, batch_of(model)).sum().backward()
        with pytest.raises(RunError, match="fired 2 times in the forward pass"):
            firing.check()


def test_head_on_targets_only_gives_the_losses_of_full_logits(model):
    """Losses from gathered hidden states are those from all logits, and the head sees no more."""
    batch, sizes = batch_of(model, 5), []
    head = model.model.get_output_embeddings()
    hook = head.register_forward_hook(lambda _m, _i, output: sizes.append(output.shape[:-1]))
    with torch.no_grad():
        found = token_losses(model.model, batch)
        hook.remove()
        logits = model.model(batch.tokens, attention_mask=batch.mask).logits
    assert sizes == [(1, int(batch.targets.sum()))]
    logs = logits[:, batch.first - 1 : -1].log_softmax(-1)
    expected = -logs.gather(2, batch.tokens[:, batch.first :, None])[:, :, 0]
    expected[~batch.targets[:, batch.first :]] = 0.0
    assert torch.allclose(found, expected, rtol=1e-5, atol=1e-6)
    assert not head._forward_pre_hooks


def test_adapter_of_the_head_is_measured_too(tiny_model_folder, model):
    """With LoRA on the head, per-sample gradients equal single-sample autograd."""
    config = LoraConfig(r=3, target_modules=["lm_head", "v_proj"], init_lora_weights=False)
    net = get_peft_model(base_of(tiny_model_folder), config).eval()
    samples = [Sample(id=f"h{i}", prompt="p" * i, response="abcd"[: 2 + i]) for i in range(3)]
    encodings = [encode(model, sample, max_length=64) for sample in samples]
    norms = np.zeros(3)
    for row, encoding in enumerate(encodings):
        loss = sample_losses(net, collate([encoding]))[0]
        parts = torch.autograd.grad(loss, [p for n, p in net.named_parameters() if "lora_" in n])
        norms[row] = sum(float(part.double().square().sum()) for part in parts) ** 0.5
    squares = []
    with sample_gradients(
        net, lora_layers(net), lambda _n, g: squares.append(g.flatten(1).double().square().sum(1))
    ) as firing:
        sample_losses(net, collate(encodings)).sum().backward()
        firing.check()
    assert np.abs(sum(squares).sqrt().numpy() / norms - 1).max() <= 1e-5
