"""A hostile coordinator that chooses how a site trains, so that an adapter is one sample's."""

from dataclasses import replace
from string import ascii_lowercase

import numpy as np
import pytest
import torch

from fedwinnow.client.boundary.training_clauses import check_training
from fedwinnow.client.boundary.work_clauses import check_work
from fedwinnow.client.measuring.pass_options import PassOptions
from fedwinnow.client.training.distinct_steps import StepGroup
from fedwinnow.client.training.local_training import train
from fedwinnow.curation.config.run import RunTerms
from fedwinnow.curation.config.scoring import AdapterSection, ModelSection
from fedwinnow.curation.config.site import PolicySection
from fedwinnow.curation.config.strict_toml import parse
from fedwinnow.curation.config.training import TrainingSection
from fedwinnow.curation.datatypes import Sample
from fedwinnow.curation.errors import RefusalError
from fedwinnow.curation.model.lora_model import freeze_factors, get_adapter
from fedwinnow.curation.model.pretrained import encode, load_model
from fedwinnow.simulations.datasets.tiny_model import write_tiny_model
from fedwinnow.strategies.interfaces.ordering import Order
from fedwinnow.strategies.objectives.sft import sft

pytestmark = pytest.mark.attacks
LEVERS = {
    "smallest_group": {"batch_size": 1},
    "max_learning_rate": {"learning_rate": 1e5},
    "min_grad_norm": {"max_grad_norm": 1e-16},
    "max_objective_strength": {"objective": {"name": "proximal", "settings": {"mu": 1e12}}},
    "max_sample_grad_norm": {"sample_grad_norm": 0.0},
}
"""Clause → the lever of the attack that it takes away."""
PLAIN = {"rounds": 1, "steps": 32, "batch_size": 32, "sample_grad_norm": 1.0}
WORK = {
    "max_repeats": {"anchors": {"copies": 20_000}},
    "max_draws": {"training": PLAIN | {"accumulation": 10**9}},
    "max_pass_tokens": {"training": PLAIN | {"batch_size": 10**6, "steps": 1}},
    "max_repeats of prompts": {"measuring": {"contrast_prompts": 10**9}},
}


def clause_of(check, **terms):
    """The clause that refuses the terms under the default policy."""
    with pytest.raises(RefusalError) as caught:
        check(parse(terms, RunTerms), PolicySection())
    return caught.value.clause


@pytest.mark.parametrize("clause", LEVERS)
def test_each_lever_of_the_inversion_is_a_clause(clause):
    """Law: any one of the attack's levers, pulled alone, is refused; none pulled, it is not."""
    check_training(parse({"training": PLAIN}, RunTerms), PolicySection())
    assert clause_of(check_training, training=PLAIN | LEVERS[clause]) == f"policy.{clause}"


@pytest.mark.parametrize("case", WORK)
def test_work_without_a_bound_is_refused_from_the_terms(case):
    """Law: what a signed join asks for is bounded before the site opens a file."""
    terms = {"training": PLAIN} | WORK[case]
    assert clause_of(check_work, **terms) == f"policy.{case.split()[0]}"


def test_an_adapter_of_a_group_does_not_hold_one_samples_tokens(tmp_path):
    """Oracle: the span of one sample's gradient gives its tokens away; a group's gives chance."""
    loaded = load_model(
        ModelSection(name=str(write_tiny_model(tmp_path / "m", hidden=64, heads=4, kv_heads=4))),
        AdapterSection(rank=64, alpha=64.0, targets=("v_proj",)), seed=0,
    )  # fmt: skip
    random = np.random.default_rng(0)
    samples = [
        Sample(id=str(i), prompt="".join(random.choice(list(ascii_lowercase), 6)),
               response="".join(random.choice(list(ascii_lowercase), 4)))
        for i in range(64)
    ]  # fmt: skip
    start = get_adapter(loaded)
    generator = torch.Generator().manual_seed(0)
    start = replace(
        start, a={n: torch.randn(a.shape, generator=generator) for n, a in start.a.items()}
    )
    one = _tokens_in_span(loaded, samples, start, draws=1)
    group = _tokens_in_span(loaded, samples, start, draws=32)
    held = [set(encode(loaded, s, max_length=96).tokens.tolist()) for s in samples]
    assert len(held[0] & one) / len(one) > 0.9
    precision = [len(tokens & group) / len(group) for tokens in held]
    assert np.mean(precision[:32]) < np.mean(precision[32:]) + 0.05  # chance: those not drawn
    assert precision[0] < 0.5


def _tokens_in_span(loaded, samples, start, *, draws):
    """The tokens whose first-layer input lies in the row space of one step's B."""
    with freeze_factors(loaded, "a", frozenset()):
        trained = train(
            loaded, samples, adapter=start, steps=1, step_offset=0, total_steps=1,
            section=TrainingSection(
                batch_size=draws, max_grad_norm=1e-14, sample_grad_norm=1.0, learning_rate=1e5
            ),
            make_up=StepGroup.of(group=draws, private=len(samples), public=0, draws=draws),
            order=Order(indices=np.arange(len(samples))), objective=sft(), learning_rate=1e5,
            schedule="constant", seed=0, options=PassOptions(batch_tokens=0, max_length=96),
        ).adapter  # fmt: skip
    name = min(start.a)
    _, values, rows = torch.linalg.svd(trained.b[name].double(), full_matrices=False)
    rank = int((values > values[0] * 1e-5).sum())
    model = loaded.model.get_base_model().model
    inputs = model.layers[0].input_layernorm(model.embed_tokens.weight).detach().double()
    seen = inputs @ start.a[name].double().T
    rest = seen - seen @ rows[:rank].T @ rows[:rank]
    near = rest.norm(dim=1) / seen.norm(dim=1) < 1e-2
    return set(near.nonzero().flatten().tolist())
