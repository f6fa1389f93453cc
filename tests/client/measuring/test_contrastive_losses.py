"""Laws of losses under other prompts, and of what a measuring pass does and does not do."""

import numpy as np
import pytest
import torch

from fedwinnow.client.measuring.contrastive_losses import ContrastPrompts
from fedwinnow.client.measuring.measuring_pass import measure
from fedwinnow.client.measuring.pass_options import PassOptions
from fedwinnow.client.measuring.references import reference_state
from fedwinnow.curation.config.load_files import load_scenario
from fedwinnow.curation.datatypes import Sample, Status
from fedwinnow.curation.errors import ModelError, NonFiniteError
from fedwinnow.curation.model.lora_model import get_adapter, set_adapter
from fedwinnow.curation.signal_columns import CONTRASTS, GRADIENTS, LOSSES, OTHER_PROMPTS
from fedwinnow.simulations.datasets.toy_federation import write_toy_scenario
from fedwinnow.simulations.runtimes.in_process import simulate
from fedwinnow.strategies.run_plugins import RunPlugins

OPTIONS = PassOptions(batch_tokens=200, max_length=64)


def some(number, tag, domains="xy"):
    return [
        Sample(
            id=f"{tag}{i}",
            prompt=f"{tag} asks {i}",
            response="so " * (1 + i % 3) + str(i),
            domain=domains[i % len(domains)],
        )
        for i in range(number)
    ]


def measured(loaded, samples, columns, *, references=None, on_progress=None, contrast_prompts=2):
    return measure(
        loaded,
        samples,
        OPTIONS,
        columns=frozenset(columns),
        checkpoint=0,
        references=references,
        contrast=some(6, "r"),
        contrast_prompts=contrast_prompts,
        on_progress=on_progress,
    )


@pytest.fixture
def model(tiny_model):
    """The tiny model with B ≠ 0."""
    adapter = get_adapter(tiny_model)
    for factor in adapter.b.values():
        factor.copy_(torch.linspace(-0.1, 0.1, factor.numel()).reshape(factor.shape))
    set_adapter(tiny_model, adapter)
    return tiny_model


@pytest.fixture
def forwards(model):
    """Shapes of the batches that the model runs on."""
    shapes = []
    embedding = model.model.get_input_embeddings()
    hook = embedding.register_forward_hook(lambda _m, inputs, _o: shapes.append(inputs[0].shape))
    yield shapes
    hook.remove()


def test_other_prompts_are_of_the_domain_and_never_the_own(model):
    """Distinct while there are enough; of any domain where the own has none."""
    public = some(6, "r")
    prompts = ContrastPrompts.of(model, public, OPTIONS)
    for sample in [*public, *some(4, "s"), Sample(id="n", prompt="n", response="", domain="new")]:
        chosen = prompts.others(sample, 2)
        assert len({one.id for one in chosen}) == 2
        assert all(one.prompt != sample.prompt for one in chosen)
        assert sample.domain == "new" or {one.domain for one in chosen} == {sample.domain}
    assert len(prompts.others(public[0], 5)) == 5


def test_prompts_that_the_template_refuses_stand_against_no_answer(model):
    """Edge: a refused anchor is never drawn; a refused empty prompt is an error in words."""
    model.tokenizer.chat_template = (
        "{% for m in messages %}{% if m.content in ('r asks 2', '') and m.role == 'user' %}"
        "{{ raise_exception('no') }}{% endif %}<{{ m.role[0] }}>{{ m.content }}</s>{% endfor %}"
        "{% if add_generation_prompt %}<a>{% endif %}"
    )
    prompts = ContrastPrompts.of(model, some(6, "r"), OPTIONS)
    drawn = {one.id for sample in some(9, "s") for one in prompts.others(sample, 5)}
    assert drawn == {"r0", "r1", "r3", "r4", "r5"}
    with pytest.raises(ModelError, match=r"refuses a prompt of 0 characters.*no"):
        measured(model, some(2, "s"), {"unconditional_loss"})


def test_other_prompts_depend_on_the_id_alone(model):
    """The same in any order of samples, and not the same for all."""
    prompts = ContrastPrompts.of(model, some(6, "r"), OPTIONS)
    samples = some(12, "s", "x")
    first = [tuple(one.id for one in prompts.others(sample, 1)) for sample in samples]
    again = [tuple(one.id for one in prompts.others(sample, 1)) for sample in reversed(samples)]
    assert first == again[::-1]
    assert len(set(first)) > 1


def test_columns_of_other_prompts_need_no_pass_of_the_own(model, forwards):
    """Only what is asked is run: unconditional losses alone take one pass over the samples."""
    measured(model, some(5, "s"), {"unconditional_loss"})
    assert sum(shape[0] for shape in forwards) == 5
    forwards.clear()
    measured(model, some(5, "s"), LOSSES | OTHER_PROMPTS)
    assert sum(shape[0] for shape in forwards) == 5 * (1 + 1 + 2)


def test_gradient_columns_take_no_second_forward_pass(model, forwards):
    """Losses and gradients come from one forward pass."""
    references = reference_state(model, some(4, "r"), OPTIONS, columns=GRADIENTS)
    forwards.clear()
    measured(model, some(5, "s"), LOSSES | GRADIENTS, references=references)
    assert sum(shape[0] for shape in forwards) == 5


def test_progress_counts_every_pass(model):
    """(done, total) grows to the total, which covers all passes."""
    told = []
    measured(
        model, some(5, "s"), LOSSES | OTHER_PROMPTS, on_progress=lambda *pair: told.append(pair)
    )
    assert [done for done, _ in told] == sorted({done for done, _ in told})
    assert {total for _, total in told} == {20}
    assert told[-1] == (20, 20)


def test_broken_sample_leaves_its_neighbours_alone(model):
    """A NaN in one sample's embedding marks that row and no other."""
    samples = some(4, "s")
    whole = measured(model, samples, LOSSES | OTHER_PROMPTS)
    letter = model.tokenizer("~", add_special_tokens=False)["input_ids"][0]
    with torch.no_grad():
        model.model.get_input_embeddings().weight[letter] = float("nan")
    spoilt = [*samples, Sample(id="nan", prompt="p~", response="r", domain="x")]
    table = measured(model, spoilt, LOSSES | OTHER_PROMPTS)
    assert table.status.tolist() == [Status.OK] * 4 + [Status.NON_FINITE]
    for name, values in table.columns.items():
        assert np.isnan(values[4])
        assert np.allclose(values[:4], whole.columns[name], rtol=1e-5, atol=1e-6)


def test_broken_reference_is_an_error_not_a_table_of_nans(model):
    """A reference anchor whose gradient is no number would spoil every row: refused."""
    letter = model.tokenizer("~", add_special_tokens=False)["input_ids"][0]
    with torch.no_grad():
        model.model.get_input_embeddings().weight[letter] = float("nan")
    anchors = [*some(3, "r"), Sample(id="nan", prompt="p~", response="r", domain="x")]
    for columns in (GRADIENTS, frozenset({"representation"})):
        with pytest.raises(NonFiniteError, match="reference anchor"):
            reference_state(model, anchors, OPTIONS, columns=columns)


def test_measuring_keeps_the_mode_of_training(model):
    """A model that trains goes on training, whichever columns were measured."""
    model.model.train()
    for columns in (LOSSES, GRADIENTS, frozenset({"representation"})):
        references = reference_state(model, some(3, "r"), OPTIONS, columns=columns)
        measured(model, some(2, "s"), columns, references=references)
        assert all(module.training for module in model.model.modules())


def test_without_other_prompts_no_scorer_waits_for_them(tmp_path):
    """measuring.contrast_prompts = 0 asks for no contrast column, at any checkpoint."""
    scenario = write_toy_scenario(tmp_path, samples=6)
    assert RunPlugins.of(load_scenario(scenario).terms()).columns_at(0) >= CONTRASTS
    terms = load_scenario(scenario, ["measuring.contrast_prompts=0"]).terms()
    assert not any(
        RunPlugins.of(terms).columns_at(t) & CONTRASTS for t in range(terms.warm_up.rounds + 1)
    )


@pytest.mark.slow
def test_a_run_without_other_prompts_reaches_its_end(tmp_path):
    """No row is lost to a mean over nothing."""
    given = ["measuring.contrast_prompts=0", "training.rounds=1", "anchors.copies=1"]
    config = load_scenario(write_toy_scenario(tmp_path, samples=6), given)
    assert (simulate(config) / "report.html").is_file()
