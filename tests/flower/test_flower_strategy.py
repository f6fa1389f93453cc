import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from fedwinnow.curation.config.run import RunConfig
from fedwinnow.curation.config.scoring import AdapterSection, PluginSection, RunSection
from fedwinnow.curation.errors import (
    EmptySelectionError,
    IncompatibleAdapterError,
    ProtocolError,
    TransportError,
)
from fedwinnow.server.strategy import CurationStrategy

A, B = "base_model.model.q_proj.lora_A.weight", "base_model.model.q_proj.lora_B.weight"


def factors(seed: int) -> dict[str, np.ndarray]:
    """Rank 2 factors of a 4 × 3 layer."""
    rng = np.random.default_rng(seed)
    return {
        A: rng.normal(size=(2, 3)).astype(np.float32),
        B: rng.normal(size=(4, 2)).astype(np.float32),
    }


def record(arrays) -> ArrayRecord:
    """Arrays as Flower's record."""
    return ArrayRecord({name: Array(array) for name, array in arrays.items()})


def client(seed: int, count: int, loss: float, *, extra: bool = False) -> ClientApp:
    """A site of an ordinary app that always trains to the same factors."""
    app = ClientApp()
    metrics = {"num-examples": count, "loss": loss, "curve": [loss, 2 * loss]}

    @app.train()
    def train(message, context):  # noqa: ARG001 - Flower's signature
        assert message.content["config"]["server-round"] >= 1
        content = {"arrays": record(factors(seed)), "metrics": MetricRecord(metrics)}
        content |= {"more": record(factors(seed))} if extra else {}
        return Message(RecordDict(content), reply_to=message)

    @app.evaluate()
    def evaluate(message, context):  # noqa: ARG001 - Flower's signature
        return Message(RecordDict({"metrics": MetricRecord(metrics)}), reply_to=message)

    return app


def failing() -> ClientApp:
    """A site where everything fails."""
    app = ClientApp()

    @app.train()
    def train(message, context):
        raise ValueError(message, context)

    @app.evaluate()
    def evaluate(message, context):
        raise ValueError(message, context)

    return app


def strategy(merging: str = "fedavg_factors", **run) -> CurationStrategy:
    """A strategy for ordinary rounds."""
    config = RunConfig(
        run=RunSection(**run),
        adapter=AdapterSection(rank=2, alpha=4.0),
        weighting=PluginSection(name="samples_kept", settings={"cap": 1.0}),
        merging=PluginSection(name=merging),
    )
    return CurationStrategy(config, patience=0.2)


def test_strategy_averages_factors_like_fedavg_in_an_ordinary_app(make_grid):
    """With fedavg_factors a round gives Σ p_i A_i and Σ p_i B_i, p by num-examples."""
    grid = make_grid({1: client(1, 30, 1.0), 2: client(2, 10, 3.0)})
    result = strategy().start(grid, initial_arrays=record(factors(0)), num_rounds=2)
    assert list(result.arrays) == [A, B]
    for name in (A, B):
        expected = 0.75 * factors(1)[name].astype(float) + 0.25 * factors(2)[name]
        np.testing.assert_allclose(result.arrays[name].numpy(), expected, rtol=1e-6)  # fp32
        assert result.arrays[name].numpy().dtype == np.float32
    assert set(result.train_metrics_clientapp) == {1, 2}


def test_strategy_merges_products_with_the_best_rank(make_grid):
    """With core_svd the merged product is the best rank-2 form of Σ p_i s B_i A_i."""
    grid = make_grid({1: client(1, 30, 1.0), 2: client(2, 10, 3.0)})
    result = strategy("core_svd").start(grid, initial_arrays=record(factors(0)), num_rounds=1)
    scale = 4.0 / 2
    full = scale * (
        0.75 * factors(1)[B].astype(float) @ factors(1)[A] + 0.25 * factors(2)[B] @ factors(2)[A]
    )
    u, s, vt = np.linalg.svd(full, full_matrices=False)
    merged = scale * result.arrays[B].numpy().astype(float) @ result.arrays[A].numpy()
    np.testing.assert_allclose(merged, u[:, :2] * s[:2] @ vt[:2], atol=1e-5)  # fp32, values near 5
    share = (s[2:] ** 2).sum() / (s**2).sum()
    metrics = result.train_metrics_clientapp[1]
    assert metrics["merge-discarded_energy"] == pytest.approx(share, abs=1e-6)


@pytest.mark.parametrize("name", ["flora", "fedex"])
def test_strategy_refuses_a_merge_that_changes_the_base(make_grid, name):
    """A change of the base would be lost on the way to the sites: refused by the rule's name."""
    grid = make_grid({1: client(1, 30, 1.0), 2: client(2, 10, 3.0)})
    with pytest.raises(ProtocolError, match=rf"merging\.name = '{name}'.*1 of its modules"):
        strategy(name).start(grid, initial_arrays=record(factors(0)), num_rounds=1)


def test_strategy_means_metrics_over_samples(make_grid):
    """A metric's mean weighs samples, not sites; lists element by element."""
    grid = make_grid({1: client(1, 30, 1.0), 2: client(2, 10, 3.0)})
    result = strategy().start(grid, initial_arrays=record(factors(0)), num_rounds=1)
    metrics = result.evaluate_metrics_clientapp[1]
    assert metrics["num-examples"] == 40
    assert metrics["loss"] == pytest.approx(1.5)
    assert metrics["curve"] == pytest.approx([1.5, 3.0])


def test_strategy_ignores_the_order_of_replies(make_grid):
    """Replies in another order give the same arrays, bit for bit."""
    grid = make_grid({1: client(1, 3, 1.0), 2: client(2, 5, 3.0), 3: client(3, 7, 2.0)})
    chosen = strategy("core_svd")
    sent = chosen.configure_train(1, record(factors(0)), ConfigRecord(), grid)
    replies = list(grid.send_and_receive(sent))
    first, _ = chosen.aggregate_train(1, replies)
    second, _ = chosen.aggregate_train(1, replies[::-1])
    for name in (A, B):
        assert first[name].data == second[name].data


def test_strategy_goes_on_without_a_failed_node(make_grid):
    """One failing node is left out; the rest decide."""
    grid = make_grid({1: client(1, 30, 1.0), 2: failing()})
    result = strategy().start(grid, initial_arrays=record(factors(0)), num_rounds=1)
    np.testing.assert_allclose(result.arrays[A].numpy(), factors(1)[A], rtol=1e-6)  # fp32


def test_strategy_fails_where_every_node_fails(make_grid):
    """A run in which every client fails is a failed run."""
    grid = make_grid({1: failing(), 2: failing()})
    with pytest.raises(TransportError, match="no node gave a usable reply"):
        strategy().start(grid, initial_arrays=record(factors(0)), num_rounds=1)


def test_strategy_fails_where_too_few_nodes_come_up(make_grid):
    """Fewer nodes than run.minimum_sites are an error within the patience."""
    with pytest.raises(TransportError, match="1 of at least 2 nodes"):
        strategy(minimum_sites=2).start(
            make_grid({1: client(1, 1, 1.0)}), initial_arrays=record(factors(0))
        )


def test_strategy_gives_a_site_without_samples_no_weight(make_grid):
    """num-examples 0 is weight 0; nothing but zeros is an error."""
    grid = make_grid({1: client(1, 30, 1.0), 2: client(2, 0, 9.0)})
    result = strategy().start(grid, initial_arrays=record(factors(0)), num_rounds=1)
    np.testing.assert_allclose(result.arrays[A].numpy(), factors(1)[A], rtol=1e-6)  # fp32
    assert result.train_metrics_clientapp[1]["loss"] == pytest.approx(1.0)
    with pytest.raises(EmptySelectionError):
        strategy().start(
            make_grid({1: client(1, 0, 1.0)}), initial_arrays=record(factors(0)), num_rounds=1
        )


def test_strategy_refuses_foreign_arrays_and_records(make_grid):
    """Arrays that are no LoRA factors, or two array records, are errors that name the cause."""
    grid = make_grid({1: client(1, 3, 1.0)})
    with pytest.raises(IncompatibleAdapterError, match="classifier"):
        strategy().start(grid, initial_arrays=record({"classifier": np.zeros((2, 2))}))
    grid = make_grid({1: client(1, 3, 1.0, extra=True)})
    with pytest.raises(ProtocolError, match="one ArrayRecord"):
        strategy().start(grid, initial_arrays=record(factors(0)), num_rounds=1)


def test_strategy_sets_the_timeout_on_every_message(make_grid):
    """A message of an ordinary round lives as long as the round may take."""
    grid = make_grid({1: client(1, 3, 1.0)})
    strategy().start(grid, initial_arrays=record(factors(0)), num_rounds=1, timeout=77.0)
    assert {message.metadata.ttl for message in grid.sent} == {77.0}
