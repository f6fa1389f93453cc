"""Laws of the proxy protocol, on a tiny model."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from fedwinnow.client.measuring.pass_options import PassOptions
from fedwinnow.client.training.local_training import train
from fedwinnow.curation.config.training import TrainingSection
from fedwinnow.curation.datatypes import Sample
from fedwinnow.curation.errors import ConfigError, DataError, EmptySelectionError, NonFiniteError
from fedwinnow.curation.model.lora_model import initial_adapter
from fedwinnow.simulations.recipes import proxy_runs
from fedwinnow.simulations.recipes.proxy_runs import ProxyPlan, proxy_ranking

SECTION = TrainingSection(batch_size=4, warmup_share=0.5)
OPTIONS = PassOptions(batch_tokens=2048, max_length=64)
PLAN = ProxyPlan(learning_rate=1e-3, checkpoints=(1, 2, 4, 8, 12), seeds=(0, 1), options=OPTIONS)


def texts(count: int, *, first: int = 0) -> list[Sample]:
    """Two kinds of prompt, each with the answer that belongs to it."""
    found = []
    for index in range(first, first + count):
        letter = "ab"[index % 2]
        prompt = letter * (4 + index % 5)
        found.append(Sample(id=str(index), prompt=prompt, response="xy"[index % 2] * 6))
    return found


def swapped(samples: list[Sample]) -> list[Sample]:
    """Each sample with its neighbour's answer: the same prompts and answers, wrongly paired."""
    answers = [samples[place ^ 1].response for place in range(len(samples))]
    return [
        Sample(id=f"{one.id}s", prompt=one.prompt, response=answer)
        for one, answer in zip(samples, answers, strict=True)
    ]


CLEAN, HOLDOUT = texts(16), texts(12, first=100)


@pytest.fixture(autouse=True)
def one_thread():
    """A model so small is fastest on one thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def run(loaded, recipes, *, plan=PLAN, holdout=HOLDOUT, **more):
    """A ranking from the untrained adapter."""
    start = initial_adapter(loaded, seed=0)
    return proxy_ranking(loaded, recipes, holdout, start=start, section=SECTION, plan=plan, **more)


def test_proxy_separates_clean_from_swapped_data(tiny_model):
    """The same words rightly and wrongly paired: clean is best, and the others lie clear of it."""
    half = [*CLEAN[:8], *swapped(CLEAN[8:])]
    found = run(tiny_model, {"swapped": swapped(CLEAN), "half": half, "clean": CLEAN})
    assert [one.name for one in found.placed] == ["clean", "half", "swapped"]
    assert all(one.low > 0 for one in found.placed[1:])
    assert found.curves["clean"].shape == (2, 5, 12)


def test_proxy_checkpoint_is_the_end_of_a_shorter_run(tiny_model):
    """Looking on the way changes nothing: each checkpoint's losses are those of a run so long."""
    whole = run(tiny_model, {"clean": CLEAN}).curves["clean"]
    for place, steps in enumerate(PLAN.checkpoints[:3]):
        plan = ProxyPlan(learning_rate=1e-3, checkpoints=(steps,), seeds=(0, 1), options=OPTIONS)
        short = run(tiny_model, {"clean": CLEAN}, plan=plan).curves["clean"]
        assert np.array_equal(short[:, 0], whole[:, place])


def test_proxy_batches_are_paired(tiny_model, monkeypatch):
    """Lists of the same length draw the same positions in the same seed, others in another."""
    drawn = []

    def watching(loaded, samples, **arguments):
        drawn.append((arguments["seed"], arguments["order"].indices.tolist()))
        return train(loaded, samples, **arguments)

    monkeypatch.setattr(proxy_runs, "train", watching)
    plan = ProxyPlan(learning_rate=1e-3, checkpoints=(1,), seeds=(5, 6), options=OPTIONS)
    run(tiny_model, {"clean": CLEAN, "swapped": swapped(CLEAN)}, plan=plan)
    assert drawn[0] == drawn[1]
    assert drawn[2] == drawn[3]
    assert drawn[0][1] != drawn[2][1]


def fake(losses):
    """Stands for one run: constant losses of a recipe by name, with a little noise of the seed."""

    def curve(*given):
        _, _, holdout, _, _, plan, seed, what, _ = given
        name = what.split(",")[0]
        noise = 0.001 * np.random.default_rng([seed, len(name)]).normal(size=(1, len(holdout)))
        return np.repeat(losses[name] + noise, len(plan.checkpoints), axis=0)

    return curve


def test_proxy_stops_what_lies_clear_of_the_best(tiny_model, monkeypatch):
    """After two seeds a hopeless recipe gets no third; without early stop it does."""
    monkeypatch.setattr(proxy_runs, "_curve", fake({"good": 1.0, "near": 1.0, "bad": 2.0}))
    recipes = {"bad": CLEAN, "good": CLEAN, "near": CLEAN}
    for early, seeds in ((True, 2), (False, 4)):
        plan = ProxyPlan(
            learning_rate=1e-3,
            checkpoints=(1, 2),
            seeds=(0, 1, 2, 3),
            options=OPTIONS,
            early_stop=early,
        )
        found = run(tiny_model, recipes, plan=plan)
        by_name = {one.name: one for one in found.placed}
        assert by_name["bad"].seeds == seeds
        assert by_name["good"].seeds == by_name["near"].seeds == 4
        assert found.placed[-1].name == "bad"


def test_proxy_names_the_recipe_whose_loss_is_no_number(tiny_model, monkeypatch):
    """A run that breaks is told by recipe and seed."""

    def broken(*_, **__):
        message = "training step 1: got loss nan"
        raise NonFiniteError(message)

    monkeypatch.setattr(proxy_runs, "train", broken)
    with pytest.raises(NonFiniteError, match=r"'clean', seed 0: training step 1"):
        run(tiny_model, {"clean": CLEAN})


def test_proxy_refuses_what_it_cannot_run(tiny_model):
    """No recipe, an empty one, no hold-out item with a target, checkpoints that do not ascend."""
    with pytest.raises(ConfigError, match="recipe"):
        run(tiny_model, {})
    with pytest.raises(EmptySelectionError):
        run(tiny_model, {"empty": []})
    plan = ProxyPlan(
        learning_rate=1e-3, checkpoints=(1,), seeds=(0,), options=replace(OPTIONS, max_length=8)
    )
    with pytest.raises(DataError, match="hold-out"):
        run(tiny_model, {"clean": CLEAN}, plan=plan, holdout=[])
    for changes in ({"checkpoints": (2, 2)}, {"checkpoints": ()}, {"seeds": ()}):
        with pytest.raises(ConfigError):
            replace(plan, **changes)
