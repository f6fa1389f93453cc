"""Every signal against a slow, obvious computation; every trap of per-sample LoRA gradients."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from warmed import warmed

from fedwinnow.client.measuring.measuring_pass import measure
from fedwinnow.client.measuring.pass_options import PassOptions
from fedwinnow.client.measuring.references import reference_state
from fedwinnow.curation.datatypes import Sample, Status, Turn
from fedwinnow.curation.errors import DataError, ModelError, RunError
from fedwinnow.curation.gradients.contraction import BETAS, EPSILON, Contraction
from fedwinnow.curation.gradients.hooks import sample_gradients
from fedwinnow.curation.model.lora_model import get_adapter, set_adapter
from fedwinnow.curation.model.pretrained import encode
from fedwinnow.curation.model.token_losses import collate, sample_losses, token_losses
from fedwinnow.curation.signal_columns import GRADIENTS, KNOWN, LOSSES, REPRESENTATIONS

OPTIONS = PassOptions(batch_tokens=300, max_length=96)


def some(number, tag, domains="xy"):
    return [
        Sample(
            id=f"{tag}{i}",
            prompt=f"{tag} asks {i} " + "why " * (i % 4),
            response=("because " + "so " * (i % 5) + str(i * 7)),
            domain=domains[i % len(domains)],
        )
        for i in range(number)
    ]


@pytest.fixture
def model(tiny_model):
    """The tiny model with B ≠ 0, as after warm-up."""
    warmed(tiny_model)
    return tiny_model


def spoiled(anchors):
    """Corruptions of anchors: their answers backwards."""
    return [
        replace(a, id=f"{a.id}-bad", response=" ".join(reversed(a.response.split())))
        for a in anchors
    ]


def table_of(
    model, samples, *, columns=KNOWN, references=None, anchors=None, options=OPTIONS, **changes
):
    anchors = some(6, "r") if anchors is None else anchors
    if references is None and columns & (GRADIENTS | REPRESENTATIONS):
        references = reference_state(
            model, anchors, options, columns=columns, corrupted=spoiled(anchors), **changes
        )
    return measure(
        model,
        samples,
        options,
        columns=frozenset(columns),
        checkpoint=1,
        references=references,
        contrast=anchors,
        contrast_prompts=2,
        **changes,
    )


def loop_gradient(model, sample, dtype=torch.float32):
    """Gradient of one sample's mean loss by plain autograd, batch of one."""
    net = model.model.to(dtype)
    parameters = [p for n, p in net.named_parameters() if "lora_" in n]
    kept = [p.requires_grad for p in parameters]
    for parameter in parameters:
        parameter.requires_grad_(True)
    loss = sample_losses(net, collate([encode(model, sample, max_length=96)]))[0]
    parts = torch.autograd.grad(loss, parameters)
    for parameter, grad in zip(parameters, kept, strict=True):
        parameter.requires_grad_(grad)
    return torch.cat([part.flatten() for part in parts]).double()


def loop_references(gradients, anchors):
    return torch.stack(
        [
            torch.stack([g for g, a in zip(gradients, anchors, strict=True) if a.domain == d]).mean(
                0
            )
            for d in sorted({a.domain for a in anchors})
        ]
    )


def apart(found, expected):
    return (
        np.abs(np.asarray(found) - np.asarray(expected)).max() / np.abs(np.asarray(expected)).max()
    )


def test_gradient_columns_equal_a_loop_of_single_samples(model):
    """dot, norm and Adam-aware forms: ≤ 1e-5 of the largest against batch-1 autograd."""
    samples, anchors = some(11, "s"), some(6, "r")
    table = table_of(model, samples, anchors=anchors)
    references = [loop_gradient(model, anchor) for anchor in sorted(anchors, key=lambda a: a.id)]
    mean = loop_references(references, sorted(anchors, key=lambda a: a.id))
    first = second = torch.zeros_like(mean[0])
    for gradient in references:
        first = BETAS[0] * first + (1 - BETAS[0]) * gradient
        second = BETAS[1] * second + (1 - BETAS[1]) * gradient**2
    steps = len(references) + 1

    def direction(g):
        m = (BETAS[0] * first + (1 - BETAS[0]) * g) / (1 - BETAS[0] ** steps)
        v = (BETAS[1] * second + (1 - BETAS[1]) * g**2) / (1 - BETAS[1] ** steps)
        return m / (v.sqrt() + EPSILON)

    gradients = [loop_gradient(model, sample) for sample in samples]
    assert apart(table.columns["dot"], torch.stack([mean @ g for g in gradients])) <= 1e-5
    assert apart(table.columns["norm"], [g.norm() for g in gradients]) <= 1e-5
    adam = [direction(g) for g in gradients]
    assert apart(table.columns["adam_dot"], torch.stack([mean @ g for g in adam])) <= 1e-5
    assert apart(table.columns["adam_norm"], [g.norm() for g in adam]) <= 1e-5
    both = torch.stack([direction(g) for g in mean])
    assert apart(table.columns["adam_adam_dot"], torch.stack([both @ g for g in adam])) <= 1e-5
    assert apart(table.reference_gram, mean @ mean.T) <= 1e-5


def test_influence_equals_the_mean_of_dense_inverses(model):
    """influence: per factor (1/n) Σ_i (λI + g_i g_iᵀ)⁻¹ in fp64 between sample and reference."""
    samples, anchors = some(5, "s"), sorted(some(6, "r"), key=lambda a: a.id)
    table = table_of(model, samples, anchors=anchors, columns=frozenset({"influence"}))
    sizes = [p.numel() for n, p in model.model.named_parameters() if "lora_" in n]
    gradients = [loop_gradient(model, anchor) for anchor in anchors]
    mean = loop_references(gradients, anchors)
    expected = torch.zeros(len(samples), len(mean), dtype=torch.float64)
    split = [g.split(sizes) for g in gradients]
    own = [loop_gradient(model, sample).split(sizes) for sample in samples]
    for factor, size in enumerate(sizes):
        each = [g[factor] for g in split]
        damping = 0.1 * sum(float(g @ g) for g in each) / (len(each) * size)
        eye = damping * torch.eye(size, dtype=torch.float64)
        inverse = sum(torch.linalg.inv(eye + torch.outer(g, g)) for g in each) / len(each)
        reference = torch.stack([row.split(sizes)[factor] for row in mean])
        expected += torch.stack([reference @ inverse @ s[factor] for s in own])
    assert apart(table.columns["influence"], expected) <= 1e-4


def test_corrupted_representation_is_the_cosine_with_corrupted_anchors(model):
    """The column is what ``representation`` would be, were the anchors their corruptions."""
    samples, anchors = some(5, "s"), some(6, "r")
    table = table_of(model, samples, anchors=anchors, columns=frozenset(REPRESENTATIONS))
    other = table_of(model, samples, anchors=spoiled(anchors), columns=frozenset(REPRESENTATIONS))
    found = table.columns["representation_corrupted"]
    assert apart(found, other.columns["representation"]) <= 1e-6
    assert apart(found, table.columns["representation"]) > 1e-3
    columns = frozenset({"representation_corrupted"})
    with pytest.raises(DataError, match="no corrupted reference anchor"):
        reference_state(model, anchors, OPTIONS, columns=columns)


@pytest.mark.filterwarnings(
    "ignore:.*torch.jit.script.*:DeprecationWarning"
)  # torch imports it itself
def test_dot_equals_forward_mode_derivative_in_fp64(model):
    """⟨g_i, G⟩ = d/dε ℓ_i(θ + εG): forward-mode in fp64 agrees to 1e-5 of the largest."""
    samples, anchors = some(4, "s"), some(4, "r", "x")
    table = table_of(model, samples, anchors=anchors, columns=frozenset({"dot"}))
    mean = torch.stack([loop_gradient(model, anchor) for anchor in anchors]).mean(0)
    net = copy.deepcopy(model.model).double().eval()
    net.set_attn_implementation("eager")
    names = [n for n, _ in net.named_parameters() if "lora_" in n]
    parameters = {n: p.detach() for n, p in net.named_parameters()}
    tangents, start = {}, 0
    for name in names:
        size = parameters[name].numel()
        tangents[name] = mean[start : start + size].reshape(parameters[name].shape)
        start += size
    expected = []
    for sample in samples:
        batch = collate([encode(model, sample, max_length=96)])

        def loss(lora, batch=batch):
            def call(**inputs):
                return torch.func.functional_call(net, {**parameters, **lora}, (), inputs)

            output = call(input_ids=batch.tokens, attention_mask=batch.mask, use_cache=False)
            targets = batch.targets[0]
            places = targets.nonzero()[:, 0]
            logs = output.logits[0, places - 1].log_softmax(-1)
            return -logs[torch.arange(len(places)), batch.tokens[0, places]].mean()

        inputs = {n: parameters[n] for n in names}
        expected.append(torch.func.jvp(loss, (inputs,), (tangents,))[1])
    assert apart(table.columns["dot"][:, 0], torch.stack(expected)) <= 1e-5


def test_gradient_columns_equal_vmap_of_grad(model):
    """The same norms by torch.func.vmap(grad)."""
    samples = [
        Sample(id=f"v{i}", prompt="p" * 5, response="abcde"[:3] + str(i), domain="x")
        for i in range(5)
    ]
    table = table_of(model, samples, anchors=some(3, "r", "x"), columns=frozenset({"norm"}))
    net = model.model.eval()
    net.set_attn_implementation("eager")
    parameters = {n: p.detach() for n, p in net.named_parameters()}
    lora = {n: p for n, p in parameters.items() if "lora_" in n}
    batch = collate([encode(model, sample, max_length=96) for sample in samples])

    def loss(own, tokens, targets):
        output = torch.func.functional_call(
            net, {**parameters, **own}, (), {"input_ids": tokens[None], "use_cache": False}
        )
        logs = output.logits[0, :-1].log_softmax(-1)
        picked = logs.gather(1, tokens[1:, None])[:, 0]
        return -(picked * targets[1:]).sum() / targets[1:].sum()

    grads = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0, 0))(
        lora, batch.tokens, batch.targets.float()
    )
    squares = sum(part.flatten(1).square().sum(1) for part in grads.values())
    assert apart(table.columns["norm"], squares.sqrt()) <= 1e-5


def test_columns_ignore_batch_padding_and_order(model):
    """Alone, in a batch, permuted: the same row to 1e-5 of the largest."""
    samples, anchors = some(9, "s"), some(6, "r")
    whole = table_of(model, samples, anchors=anchors)
    order = [4, 0, 8, 2, 6, 1, 3, 7, 5]
    mixed = table_of(
        model,
        [samples[i] for i in order],
        anchors=anchors,
        options=replace(OPTIONS, batch_tokens=8),
    )
    for name, values in whole.columns.items():
        scale = np.abs(values).max()
        assert np.abs(mixed.columns[name] - values[order]).max() <= 1e-5 * scale, name


def test_references_at_once_equal_single_runs(model):
    """k references in one pass are k passes with one reference each."""
    samples, anchors = some(5, "s"), some(6, "r", "xyz")
    columns = frozenset({"dot"})
    together = table_of(model, samples, anchors=anchors, columns=columns)
    for k, domain in enumerate(together.references):
        alone = [anchor for anchor in anchors if anchor.domain == domain]
        single = table_of(model, samples, anchors=alone, columns=columns)
        assert apart(together.columns["dot"][:, k], single.columns["dot"][:, 0]) <= 1e-5


def test_squared_norm_is_additive_over_layers(model):
    """‖g‖² over all layers is the sum over single layers."""
    layers = dict(model.layers())
    batch = collate([encode(model, s, max_length=96) for s in some(4, "s")])

    def squares(chosen):
        parts = []
        with sample_gradients(
            model.model, chosen, lambda _n, g: parts.append(g.flatten(1))
        ) as fired:
            sample_losses(model.model, batch).sum().backward()
            fired.check()
        return sum(part.square().sum(1) for part in parts)

    total = sum(squares({name: layer}) for name, layer in layers.items())
    assert apart(squares(layers), total) <= 1e-5


def test_loss_columns_equal_the_model_own_loss(model):
    """Loss over the body equals the model's own label loss where only the body is labelled."""
    samples = some(3, "s")
    table = table_of(model, samples, columns=LOSSES)
    for row, sample in enumerate(samples):
        encoding = encode(model, sample, max_length=96)
        tokens = torch.tensor(encoding.tokens[None].astype(np.int64))
        labels = torch.full_like(tokens, -100)
        body = slice(encoding.response_start, encoding.body_end)
        labels[:, body] = tokens[:, body]
        with torch.no_grad():
            expected = model.model(input_ids=tokens, labels=labels).loss
        assert table.columns["loss"][row] == pytest.approx(float(expected), rel=1e-5)
        assert table.columns["length"][row] == encoding.body_end - encoding.response_start
        assert table.columns["has_end"][row] == 1.0


def test_other_prompts_score_the_same_body(model):
    """Unconditional and contrastive losses run over the body tokens of the conditional one."""
    sample = some(1, "s")[0]
    anchors = some(6, "r")
    table = table_of(model, [sample], anchors=anchors)
    low, high = [], []
    for other in [Sample(id="", prompt="", response=""), *anchors]:
        swapped = Sample(id="o", prompt=other.prompt, response=sample.response)
        encoding = encode(model, swapped, max_length=96)
        batch = collate([encoding])
        with torch.no_grad():
            losses = token_losses(model.model, batch)[0]
        first = encoding.response_start - batch.first
        body = losses[first : first + encoding.body_end - encoding.response_start].mean()
        (low if other.prompt == "" else high).append(float(body))
    assert table.columns["unconditional_loss"][0] == pytest.approx(low[0], rel=1e-5)
    same = [v for v, a in zip(high, anchors, strict=True) if a.domain == sample.domain]
    assert min(same) * (1 - 1e-5) <= table.columns["contrast_loss_min"][0] <= max(same) * (1 + 1e-5)
    assert table.columns["contrast_loss_min"][0] <= table.columns["contrast_loss_mean"][0]


def test_every_answer_is_measured_where_asked(model):
    """Oracle: with train_on "all" the columns are means over both bodies, under any prompt."""
    history = (Turn("user", "q"), Turn("assistant", "first one"))
    sample = replace(some(1, "s")[0], history=history, train_on="all")
    wanted = frozenset(
        {"loss", "length", "unconditional_loss", "student_entropy", "representation"}
    )
    anchors = some(6, "r")
    table = table_of(model, [sample], anchors=anchors, columns=wanted)
    encoding = encode(model, sample, max_length=96)
    places = np.concatenate([np.arange(begin, end) for begin, end in encoding.bodies])
    assert table.columns["length"][0] == len(places) == len("first one") + len(sample.response)
    empty = encode(model, Sample(id="", prompt="", response="x"), max_length=96)
    first = places[0]
    other = np.concatenate([empty.tokens[: empty.response_start], encoding.tokens[first:]])
    off = empty.response_start - first
    for tokens, at, name in ((encoding.tokens, places, "loss"),
                             (other, places + off, "unconditional_loss")):  # fmt: skip
        with torch.no_grad():
            given = torch.tensor(tokens[None].astype(np.int64))
            found = model.model(input_ids=given, output_hidden_states=True)
        logs = found.logits[0].log_softmax(-1)
        expected = -np.mean([float(logs[place - 1, int(tokens[place])]) for place in at])
        assert table.columns[name][0] == pytest.approx(expected, rel=1e-4)
        if name == "loss":
            entropy = -(logs.exp() * logs).sum(-1)[places - 1].mean() / np.log(logs.shape[1])
            state = found.hidden_states[-1][0, places].mean(0)
    assert table.columns["student_entropy"][0] == pytest.approx(float(entropy), rel=1e-4)
    references = reference_state(model, anchors, OPTIONS, columns=frozenset({"representation"}))
    cosine = references.similarity(state[None])["representation"][0]
    assert table.columns["representation"][0] == pytest.approx(cosine.numpy(), rel=1e-4)


def test_empty_response_gets_a_status_not_a_nan_score(model):
    """A sample without a target token has status NO_TARGET; others are untouched."""
    samples = [*some(2, "s"), Sample(id="none", prompt="p", response="", domain="x")]
    table = table_of(model, samples)
    assert table.status.tolist() == [Status.OK, Status.OK, Status.NO_TARGET]
    assert np.isnan(table.columns["loss"][2])
    assert np.isfinite(table.columns["adam_dot"][:2]).all()


def test_non_finite_weights_give_a_status(model):
    """A NaN in the model marks rows NON_FINITE instead of travelling."""
    with torch.no_grad():
        model.model.get_base_model().lm_head.weight[5] = float("nan")
    table = table_of(model, some(2, "s"), columns=LOSSES)
    assert table.status.tolist() == [Status.NON_FINITE] * 2


def test_no_samples_give_an_empty_table(model):
    """Nothing in, nothing out, every column there."""
    table = table_of(model, [])
    assert table.columns["dot"].shape == (0, 2)
    assert set(table.columns) == KNOWN


def test_only_asked_columns_are_computed(model):
    """A forward-only request makes no backward pass and returns no other column."""
    fired = []
    for parameter in model.model.parameters():
        parameter.register_hook(fired.append) if parameter.requires_grad else None
    table = table_of(model, some(3, "s"), columns=frozenset({"loss"}))
    assert set(table.columns) == {"loss"}
    assert not fired


def test_bytes_kept_per_sample_stay_under_a_hundred(model):
    """8 references, every column of the gradient pass: ≤ 100 bytes a sample and checkpoint."""
    anchors = some(8, "r", "abcdefgh")
    columns = frozenset({"loss", "dot", "norm", "adam_dot", "adam_norm", "end_loss", "loss_sd"})
    table = table_of(model, some(4, "s", "ab"), anchors=anchors, columns=columns)
    kept = sum(v.nbytes for v in table.columns.values()) + table.status.nbytes
    assert kept / 4 <= 100


def test_unknown_column_and_missing_reference_are_refused(model):
    """Errors name the column."""
    with pytest.raises(ModelError, match="wit"):
        table_of(model, some(1, "s"), columns=frozenset({"wit"}))
    with pytest.raises(ModelError, match="dot"):
        measure(
            model, some(1, "s"), OPTIONS, columns=frozenset({"dot"}), checkpoint=1, references=None,
            contrast=[], contrast_prompts=0,
        )  # fmt: skip
    with pytest.raises(DataError, match="contrast_prompts"):
        one = some(1, "s")
        table_of(model, one, anchors=one, columns=frozenset({"contrast_loss_min"}))


# The traps of per-sample LoRA gradients (each named by what goes wrong elsewhere).


def test_trap_dropout_is_off_while_measuring_and_mode_is_restored(tiny_model_folder):
    """Scores do not change between two passes though the adapter has dropout."""
    from fedwinnow.curation.config.scoring import AdapterSection, ModelSection
    from fedwinnow.curation.model.pretrained import load_model

    section = ModelSection(name=str(tiny_model_folder))
    loaded = load_model(section, AdapterSection(rank=2, dropout=0.5), seed=0)
    adapter = get_adapter(loaded)
    for factor in adapter.b.values():
        factor.fill_(0.1)
    set_adapter(loaded, adapter)
    loaded.model.train()
    first, second = (table_of(loaded, some(3, "s")) for _ in range(2))
    assert np.array_equal(first.columns["dot"], second.columns["dot"])
    assert loaded.model.training


def test_trap_zero_b_is_refused_by_name(tiny_model):
    """At B = 0 the gradient of A is zero: refused."""
    with pytest.raises(ModelError, match="B = 0"):
        table_of(tiny_model, some(2, "s"))


def test_trap_disabled_adapter_is_refused(model):
    """A disabled adapter would give zeros."""
    with model.model.disable_adapter(), pytest.raises(ModelError, match="disabled"):
        table_of(model, some(2, "s"))


def test_trap_merged_adapter_is_refused(model):
    """A merged adapter never fires."""
    model.model.merge_adapter()
    with pytest.raises(ModelError, match="merged"):
        table_of(model, some(2, "s"))


def test_trap_dora_is_refused(model):
    """DoRA calls the factors on an identity matrix."""
    base = copy.deepcopy(model.model.get_base_model())
    net = get_peft_model(
        model.model.unload(), LoraConfig(r=2, use_dora=True, target_modules=["q_proj"])
    )
    del base
    layers = {n: m for n, m in net.named_modules() if hasattr(m, "lora_A") and len(m.lora_A)}
    with pytest.raises(ModelError, match="DoRA"), sample_gradients(net, layers, lambda *_: None):
        pass


def test_trap_two_active_adapters_are_refused(model):
    """Exactly one adapter is measured."""
    model.model.add_adapter("second", LoraConfig(r=2, target_modules=["q_proj", "v_proj"]))
    model.model.base_model.set_adapter(["default", "second"])
    with pytest.raises(ModelError, match="one adapter"):
        table_of(model, some(2, "s"))


def test_trap_shared_factor_is_refused(model):
    """Two layers with one factor: the norm is not the sum of theirs."""
    layers = [layer for _, layer in model.layers()]
    layers[2].lora_A["default"].weight = layers[0].lora_A["default"].weight
    with pytest.raises(ModelError, match="share"):
        table_of(model, some(2, "s"))


def test_trap_module_that_does_not_fire_once_is_an_error(model):
    """A skipped or repeated module is named."""
    batch = collate([encode(model, s, max_length=96) for s in some(2, "s")])
    with sample_gradients(model.model, dict(model.layers()), lambda *_: None) as fired:
        with pytest.raises(RunError, match="fired 0 times"):
            fired.check()
        losses = sample_losses(model.model, batch) + sample_losses(model.model, batch)
        losses.sum().backward()
        with pytest.raises(RunError, match="fired 2 times"):
            fired.check()


def test_trap_compiled_model_is_refused(model):
    """Hooks registered after compilation are ignored silently elsewhere; here they are refused."""
    layers = dict(model.layers())
    compiled = torch.nn.Module()  # what torch.compile wraps around a model, without its start-up
    compiled.add_module("_orig_mod", model.model)
    with (
        pytest.raises(ModelError, match="compiled"),
        sample_gradients(compiled, layers, lambda *_: None),
    ):
        pass


def test_trap_hooks_and_gradients_do_not_stay(model):
    """After measuring, no hook fires, no parameter changed its flag, no gradient lies about."""
    flags = [p.requires_grad for p in model.model.parameters()]
    table_of(model, some(2, "s"))
    assert [p.requires_grad for p in model.model.parameters()] == flags
    assert all(p.grad is None for p in model.model.parameters())
    for _, layer in model.layers():
        assert not layer.lora_A["default"]._forward_hooks
        assert not layer.lora_B["default"]._forward_hooks
    assert not model.model.get_input_embeddings()._forward_hooks


def test_trap_neighbours_do_not_change_a_sample(model):
    """The loss of a batch is a sum: a long neighbour leaves a sample's dot where it was."""
    sample = some(1, "s")[0]
    long = Sample(id="long", prompt="p" * 30, response="answer " * 8, domain="x")
    anchors = some(4, "r")
    columns = frozenset({"dot"})
    alone = table_of(model, [sample], anchors=anchors, columns=columns)
    beside = table_of(
        model,
        [sample, long],
        anchors=anchors,
        columns=columns,
        options=replace(OPTIONS, batch_tokens=4096),
    )
    assert apart(beside.columns["dot"][:1], alone.columns["dot"]) <= 1e-5


def test_trap_bfloat16_activations_are_contracted_in_fp32(model):
    """Under bf16 autocast dots stay within 5 % and are float32."""
    batch = collate([encode(model, s, max_length=96) for s in some(3, "s")])
    references = reference_state(model, some(4, "r"), OPTIONS, columns=frozenset({"dot"}))

    def dots(enabled):
        contraction = references.contraction({"dot"})
        with (
            sample_gradients(model.model, dict(model.layers()), contraction),
            torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled),
        ):
            sample_losses(model.model, batch).sum().backward()
        return contraction.dots

    assert dots(True).dtype == torch.float32
    assert apart(dots(True), dots(False)) <= 0.05


def test_trap_gradient_checkpointing_changes_nothing(model):
    """With activation checkpointing asked for, measured columns are the same."""
    plain = table_of(model, some(4, "s"))
    base = model.model.get_base_model()
    names = ("activation_checkpointing_enable", "gradient_checkpointing_enable")
    next(getattr(base, name) for name in names if hasattr(base, name))()
    again = table_of(model, some(4, "s"))
    assert np.array_equal(plain.columns["dot"], again.columns["dot"])


def test_contraction_is_linear_in_the_reference(model):
    """⟨g, aG⟩ = a⟨g, G⟩."""
    batch = collate([encode(model, s, max_length=96) for s in some(3, "s")])
    references = reference_state(model, some(4, "r"), OPTIONS, columns=frozenset({"dot"}))
    found = []
    for factor in (1.0, -2.5):
        scaled = Contraction(references={k: factor * v for k, v in references.means.items()})
        with sample_gradients(model.model, dict(model.layers()), scaled):
            sample_losses(model.model, batch).sum().backward()
        found.append(scaled.dots)
    assert apart(found[1], -2.5 * found[0]) <= 1e-5
