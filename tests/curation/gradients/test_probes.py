"""Per-sample gradients by a probe: the same as by hooks, also where hooks see nothing."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import (
    CheckpointImpl,
    apply_activation_checkpointing,
    checkpoint_wrapper,
)
from warmed import warmed

from fedwinnow.curation.datatypes import Sample
from fedwinnow.curation.errors import ModelError, RunError
from fedwinnow.curation.gradients.hooks import sample_gradients
from fedwinnow.curation.gradients.probes import Probed, with_probes
from fedwinnow.curation.model.hook_support import why_no_hooks
from fedwinnow.curation.model.modes import evaluation_mode
from fedwinnow.curation.model.pretrained import encode
from fedwinnow.curation.model.token_losses import collate, sample_losses


@pytest.fixture
def model(tiny_model):
    """The tiny model with B ≠ 0, as after warm-up, in float64."""
    warmed(tiny_model)
    tiny_model.model.double()
    return tiny_model


def batch_of(model, number=4):
    """Ragged samples side by side."""
    samples = [
        Sample(id=str(i), prompt="why " * (i % 3 + 1), response="so " * (3 * i % 5 + 1))
        for i in range(number)
    ]
    return collate([encode(model, sample, max_length=96) for sample in samples])


def probe_gradients(net, layers, batch):
    """Factor → per-sample gradients by the probe."""
    found = {}
    with with_probes(net, layers) as probe:
        probe.begin(len(batch.tokens))
        sample_losses(net, batch).sum().backward()
        probe.end(found.__setitem__)
    return found


def hook_gradients(net, layers, batch):
    """Factor → per-sample gradients by hooks."""
    found = {}
    with sample_gradients(net, layers, found.__setitem__) as firing:
        sample_losses(net, batch).sum().backward()
        firing.check()
    return found


def loop_gradients(net, layers, batch):
    """Factor → gradients of one sample after the other by plain autograd."""
    rows = {}
    for sample in range(len(batch.tokens)):
        net.zero_grad()
        sample_losses(net, batch)[sample].backward()
        for name, layer in layers.items():
            for letter, factors in (("A", layer.lora_A), ("B", layer.lora_B)):
                grad = factors["default"].weight.grad.clone()
                rows.setdefault(f"{name}.{letter}", []).append(grad)
    net.zero_grad()
    return {name: torch.stack(parts) for name, parts in rows.items()}


def apart(found, expected):
    """Largest difference as a share of the largest expected number, over all factors."""
    assert found.keys() == expected.keys()
    largest = max(float(values.abs().max()) for values in expected.values())
    return max(float((found[n] - expected[n]).abs().max()) for n in expected) / largest


def test_probe_and_hooks_equal_a_loop_of_single_samples(model):
    """Both give ∂ℓ_i/∂F of every sample and factor to 1e-12 of the largest in float64."""
    layers, batch = dict(model.layers()), batch_of(model)
    with evaluation_mode(model.model):
        expected = loop_gradients(model.model, layers, batch)
    assert apart(probe_gradients(model.model, layers, batch), expected) <= 1e-12
    assert apart(hook_gradients(model.model, layers, batch), expected) <= 1e-12


def test_probe_changes_no_loss_and_leaves_the_model_as_it_was(model):
    """Losses are the same inside, bit for bit; classes, flags, modes and names are as before."""
    net, layers, batch = model.model, dict(model.layers()), batch_of(model)
    net.train()
    flags = [(n, p.requires_grad) for n, p in net.named_parameters()]
    with torch.no_grad():
        before = sample_losses(net, batch)
    with with_probes(net, layers) as probe:
        probe.begin(len(batch.tokens))
        assert torch.equal(sample_losses(net, batch), before)
        assert [n for n, _ in net.named_parameters()] == [n for n, _ in flags]
    assert [(n, p.requires_grad) for n, p in net.named_parameters()] == flags
    assert all(p.grad is None for p in net.parameters())
    assert not any(isinstance(part, Probed) or hasattr(part, "offset") for part in net.modules())
    assert net.training


def test_probe_sums_the_passes_of_a_layer_that_runs_twice(model):
    """Two forward passes, one backward: the gradient is that of the summed loss, so its norm is."""
    net, layers, batch = model.model, dict(model.layers()), batch_of(model)
    single, found = probe_gradients(net, layers, batch), {}
    with with_probes(net, layers) as probe:
        probe.begin(len(batch.tokens))
        (sample_losses(net, batch) + 2 * sample_losses(net, batch)).sum().backward()
        probe.end(found.__setitem__)
    assert apart(found, {name: 3 * values for name, values in single.items()}) <= 1e-12


@pytest.mark.parametrize("reentrant", [False, True])
def test_probe_is_exact_in_checkpoint_wrappers_where_hooks_are_refused(model, reentrant):
    """Recomputed layers give the same gradients; hooks would fire twice and are refused."""
    net, layers, batch = model.model, dict(model.layers()), batch_of(model)
    expected = probe_gradients(net, layers, batch)
    kind = CheckpointImpl.REENTRANT if reentrant else CheckpointImpl.NO_REENTRANT
    if reentrant:  # its backward pass needs an input that requires a gradient
        net.enable_input_require_grads()
    apply_activation_checkpointing(
        net,
        checkpoint_wrapper_fn=lambda part: checkpoint_wrapper(part, checkpoint_impl=kind),
        check_fn=lambda part: type(part).__name__ == "LlamaDecoderLayer",
    )
    found = probe_gradients(net, layers, batch)
    assert apart(found, expected) <= 1e-12
    assert "checkpoint wrapper" in why_no_hooks(net)
    with pytest.raises(ModelError, match=r"measuring\.backend = 'probe'"):
        hook_gradients(net, layers, batch)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # the compiler's own
def test_probe_is_exact_under_torch_compile_where_hooks_are_refused(model):
    """Compiled before the probe comes, and traced without it: the gradients are the same."""
    net, layers, batch = model.model, dict(model.layers()), batch_of(model)
    other = batch_of(model, 3)
    expected, fewer = (probe_gradients(net, layers, one) for one in (batch, other))
    net.get_base_model().model.layers[0].compile(backend="aot_eager")  # PEFT's wrapper cannot be
    with torch.no_grad(), evaluation_mode(net):
        plain = sample_losses(net, batch)
    assert apart(probe_gradients(net, layers, batch), expected) <= 1e-6
    assert apart(probe_gradients(net, layers, other), fewer) <= 1e-6
    with torch.no_grad(), evaluation_mode(net):
        assert torch.allclose(plain, sample_losses(net, batch), rtol=1e-7)
    assert "compiled" in why_no_hooks(net)
    with pytest.raises(ModelError, match=r"measuring\.backend = 'probe'"):
        hook_gradients(net, layers, batch)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # those of torch.distributed on a CPU
def test_probe_is_exact_under_fsdp_where_hooks_are_refused(model, tmp_path):
    """Decoder layers sharded by FSDP2 (one process): the gradients are the same."""
    from torch import distributed
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    net, batch = model.model, batch_of(model)
    expected = probe_gradients(net, dict(model.layers()), batch)
    distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path / 'meeting'}", rank=0, world_size=1
    )
    try:
        mesh = init_device_mesh("cpu", (1,))
        for part in list(net.modules()):
            if type(part).__name__ == "LlamaDecoderLayer":
                fully_shard(part, mesh=mesh)
        layers = dict(model.layers())
        assert apart(probe_gradients(net, layers, batch), expected) <= 1e-12
        assert "FSDP" in why_no_hooks(net)
        with pytest.raises(ModelError, match=r"measuring\.backend = 'probe'"):
            hook_gradients(net, layers, batch)
    finally:
        distributed.destroy_process_group()


def test_probe_of_a_layer_that_does_not_run_is_an_error(model):
    """No part of a gradient is left out without a word."""
    layers, batch = dict(model.layers()), batch_of(model)
    with with_probes(model.model, layers) as probe:
        with pytest.raises(RunError, match="did not run"):
            probe.end(lambda *_: None)
        probe.begin(len(batch.tokens))
        with pytest.raises(RunError, match="did not run"):
            probe.end(lambda *_: None)


def test_probe_refuses_what_hooks_refuse(model):
    """Disabled, merged, B = 0 and DoRA: by name, with the cure, and nothing is left behind."""
    net, layers = model.model, dict(model.layers())

    def refused(match, net=net, layers=layers):
        with pytest.raises(ModelError, match=match), with_probes(net, layers):
            pass
        assert not any(isinstance(part, Probed) for part in net.modules())

    refused("no LoRA layer", layers={})
    with net.disable_adapter():
        refused("disabled")
    held = [layer.lora_B["default"].weight.detach().clone() for layer in layers.values()]
    for layer in layers.values():
        layer.lora_B["default"].weight.data.zero_()
    refused("B = 0")
    for layer, weight in zip(layers.values(), held, strict=True):
        layer.lora_B["default"].weight.data.copy_(weight)
    net.merge_adapter()
    refused("merged")
    net.unmerge_adapter()
    dora = get_peft_model(net.unload(), LoraConfig(r=2, use_dora=True, target_modules=["q_proj"]))
    found = {n: m for n, m in dora.named_modules() if hasattr(m, "lora_A") and len(m.lora_A)}
    refused("DoRA", net=dora, layers=found)
