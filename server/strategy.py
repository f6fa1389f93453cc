"""Implement Flower's Strategy: the curation protocol over a Grid, or merging in an ordinary app.

``start(grid)`` runs the driver of :mod:`fedwinnow.server.run.driver` over Flower's messages. Given
``initial_arrays``, ``start`` runs Flower's own loop, and the strategy weighs and merges LoRA
factors, as FedAvg does weights: ΔW* = Σ p_i s_i B_i A_i by the merge rule of the configuration.
"""

import logging
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result, Strategy

from fedwinnow.curation.adapters.peft_names import (
    adapter_from_arrays,
    adapter_to_arrays,
    state_dict_of,
)
from fedwinnow.curation.config.identity import run_id
from fedwinnow.curation.config.run import RunConfig
from fedwinnow.curation.errors import EmptySelectionError, ProtocolError, TransportError
from fedwinnow.curation.protocol.flower_records import array_record, read_arrays
from fedwinnow.server.aggregation.round_merge import merge_plain
from fedwinnow.server.run.driver import DEADLINE, Progress, drive
from fedwinnow.server.run.preflight import check_plan
from fedwinnow.server.run.run_folder import RunFolder
from fedwinnow.server.state import RunState
from fedwinnow.server.transport.codec import codec_of
from fedwinnow.server.transport.flower_grid import GridTransport, wait_for_nodes
from fedwinnow.strategies.interfaces.merging import Memory
from fedwinnow.strategies.run_plugins import MergePlugins

logger = logging.getLogger(__name__)

NUM_EXAMPLES = "num-examples"
"""Flower's key of the number of samples behind a reply."""


class CurationStrategy(Strategy):
    """Flower strategy that curates and trains over a Grid, or merges factors in an ordinary app."""

    def __init__(
        self,
        config: RunConfig | None = None,
        *,
        resume: bool = False,
        patience: float = 60.0,
        command: str = "",
        progress: Progress | None = None,
    ) -> None:
        """Take the configuration of the run.

        Args:
            config: Configuration of the run; an ordinary app reads weighting, merging, adapter and
                run.minimum_sites.
            resume: Go on from the last committed state of the run folder.
            patience: Longest wait for the nodes to appear, seconds.
            command: The command line that reproduces the run, for the report.
            progress: Called with every delivery.
        """
        self.config = RunConfig() if config is None else config
        self.resume = resume
        self.patience = patience
        self.progress = progress
        self.command = command
        self._ttl = DEADLINE
        self._previous: ArrayRecord | None = None
        self._memory: Memory = {}

    @property
    def expected(self) -> int:
        """Return the nodes to wait for: all simulated sites, or the fewest that may join a run."""
        config = self.config
        return max(len(config.sites), config.quorum.of("join", config.run.minimum_sites))

    @property
    def _scale(self) -> float:
        adapter = self.config.adapter
        return adapter.alpha / (math.sqrt(adapter.rank) if adapter.rslora else adapter.rank)

    def summary(self) -> None:
        """Log the plug-ins that select and merge, and the number of nodes to wait for."""
        config = self.config
        plugins = (config.scorer, config.threshold, config.weighting, config.merging)
        words = "scorer %s, threshold %s, weighting %s, merging %s, at least %d nodes"
        logger.info(words, *(plugin.name for plugin in plugins), self.expected)

    def start(
        self,
        grid: Grid,
        initial_arrays: ArrayRecord | None = None,
        num_rounds: int = 3,
        timeout: float = DEADLINE,
        train_config: ConfigRecord | None = None,
        evaluate_config: ConfigRecord | None = None,
        evaluate_fn: Callable[[int, ArrayRecord], MetricRecord | None] | None = None,
    ) -> Result:
        """Run the curation protocol, or Flower's own rounds where ``initial_arrays`` are given.

        Args:
            grid: Flower's grid.
            initial_arrays: LoRA factors under PEFT's names: run ordinary rounds from them.
            num_rounds: Ordinary rounds; the protocol takes ``training.rounds``.
            timeout: Longest wait for one phase or round, and TTL of its messages, seconds.
            train_config: As in Flower, ordinary rounds only.
            evaluate_config: As in Flower, ordinary rounds only.
            evaluate_fn: As in Flower, ordinary rounds only.

        Raises:
            InputError: a plug-in or a setting is wrong; no node was asked.
            TransportError: too few nodes, or no node gave a usable reply.
            RunError: the run cannot go on (see :mod:`fedwinnow.curation.errors`).
        """
        self._ttl = timeout
        if initial_arrays is not None:
            MergePlugins.of(self.config)
            of_flower = (train_config, evaluate_config, evaluate_fn)
            return super().start(grid, initial_arrays, num_rounds, timeout, *of_flower)
        from fedwinnow.server.report.final_files import finish  # noqa: PLC0415 - transformers load only here

        self.summary()
        check_plan(self.config)
        store = RunFolder.open(self.config, resume=self.resume)
        state = store.begin(self.config, run_id(self.config))
        transport = GridTransport(
            grid=grid,
            expected=self.expected,
            patience=self.patience,
            codec=codec_of(self.config, store.folder),
        )
        if self.config.coordinator.key:
            transport.resends = self.config.coordinator.resends
            transport.pause = self.config.coordinator.pause
            transport.memory = store.folder / "state" / "nodes.json"
        state = drive(state, transport, store=store, deadline=timeout, progress=self.progress)
        finish(state, store, command=self.command)
        return flower_result(state)

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Return messages that send the factors to every node."""
        self._previous = arrays
        return self._messages(server_round, arrays, config, grid, MessageType.TRAIN)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Weigh by ``num-examples`` and merge the factors.

        Raises:
            TransportError: no node gave a usable reply.
            EmptySelectionError: no node trained on a sample.
            IncompatibleAdapterError: a node's factors are not those that it was sent.
        """
        if self._previous is None:
            message = "aggregate_train: configure_train comes first, it holds the adapter sent"
            raise ProtocolError(message)
        contents = _usable(replies, server_round, "train")
        counts = _counts(contents)
        adapters = {
            node: adapter_from_arrays(
                read_arrays(_only(content.array_records, node)), scale=self._scale
            )
            for node, content in contents.items()
            if counts[node] > 0
        }
        sent = read_arrays(self._previous)
        merged, self._memory = merge_plain(
            adapters,
            {node: counts[node] for node in adapters},
            adapter_from_arrays(sent, scale=self._scale),
            self.config,
            self._memory if server_round > 1 else {},
        )
        arrays = adapter_to_arrays(merged.adapter, like=sent, scale=self._scale)
        merge = {f"merge-{key}": float(value) for key, value in merged.report.items()}
        metrics = _means(contents, counts) | merge
        return array_record(arrays), MetricRecord(metrics)

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Return messages that send the merged factors to every node."""
        return self._messages(server_round, arrays, config, grid, MessageType.EVALUATE)

    def aggregate_evaluate(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None:
        """Return the mean of each metric over samples, not over nodes.

        Raises:
            TransportError: no node gave a usable reply.
            EmptySelectionError: no node evaluated a sample.
        """
        contents = _usable(replies, server_round, "evaluate")
        return MetricRecord(_means(contents, _counts(contents)))

    def _messages(
        self,
        server_round: int,
        arrays: ArrayRecord,
        config: ConfigRecord,
        grid: Grid,
        message_type: str,
    ) -> Iterable[Message]:
        nodes = wait_for_nodes(grid, expected=self.expected, patience=self.patience)
        config["server-round"] = server_round
        content = RecordDict({"arrays": arrays, "config": config})
        return [
            Message(content, node, message_type, ttl=self._ttl, group_id=str(server_round))
            for node in nodes
        ]


def flower_result(state: RunState) -> Result:
    """Return Flower's result of a curation run: the curated adapter and its losses by round.

    Ordinary rounds count from 1; round 0 of the evaluation is the untrained adapter.
    """
    result = Result()
    final = state.finals.get("curated")
    if final is not None:
        result.arrays = array_record(state_dict_of(final))
    for record in state.records:
        if record.arm not in {"", "curated"}:
            continue
        if record.phase == "evaluate" and record.public_losses:
            loss = float(np.mean(record.public_losses))
            metrics = MetricRecord({"eval-loss": loss, NUM_EXAMPLES: len(record.public_losses)})
            result.evaluate_metrics_clientapp[record.round] = metrics
        if record.phase == "train":
            samples = sum(site.samples for site in record.sites.values())
            merge = {f"merge-{key}": float(value) for key, value in record.merge.items()}
            result.train_metrics_clientapp[record.round] = MetricRecord(
                {NUM_EXAMPLES: samples, **merge}
            )
    return result


def _usable(replies: Iterable[Message], server_round: int, what: str) -> dict[str, RecordDict]:
    """Return node → content of the replies without an error, sorted by node id.

    Raises:
        TransportError: every reply is an error, or none came.
    """
    contents: dict[str, RecordDict] = {}
    failures = []
    for reply in replies:
        node = str(reply.metadata.src_node_id)
        if reply.has_error():
            failures.append(f"node {node}: {(reply.error.reason or '')[:200]}")
        else:
            contents[node] = reply.content
    for failure in failures:
        logger.warning("%s round %d, %s", what, server_round, failure)
    if not contents:
        reasons = "; ".join(failures) or "no reply came in time"
        message = f"{what} round {server_round}: no node gave a usable reply ({reasons}); mend them"
        raise TransportError(message)
    return dict(sorted(contents.items()))


def _only(records: Mapping[str, Any], node: str) -> Any:  # noqa: ANN401 - either kind of record
    if len(records) != 1:
        message = (
            f"node {node}: expected one ArrayRecord and one MetricRecord, got {len(records)} of "
            "one kind; reply with RecordDict({'arrays': …, 'metrics': …})"
        )
        raise ProtocolError(message)
    return next(iter(records.values()))


def _counts(contents: Mapping[str, RecordDict]) -> dict[str, int]:
    counts = {}
    for node, content in contents.items():
        value = _only(content.metric_records, node).get(NUM_EXAMPLES)
        if isinstance(value, list) or value is None or value < 0 or int(value) != value:
            message = (
                f"node {node}: {NUM_EXAMPLES} must be a whole number of samples, got {value!r}"
            )
            raise ProtocolError(message)
        counts[node] = int(value)
    return counts


def _means(
    contents: Mapping[str, RecordDict], counts: Mapping[str, int]
) -> dict[str, int | float | list[int] | list[float]]:
    """Return the mean of every metric over samples, and the total number of samples."""
    if (total := sum(counts.values())) == 0:
        message = f"{NUM_EXAMPLES} is 0 at every one of {len(counts)} nodes; give them samples"
        raise EmptySelectionError(message)
    means: dict[str, int | float | list[int] | list[float]] = {NUM_EXAMPLES: total}
    first = _only(next(iter(contents.values())).metric_records, min(contents))
    for key in sorted(set(first) - {NUM_EXAMPLES}):
        values = [_only(content.metric_records, node)[key] for node, content in contents.items()]
        weights = [counts[node] / total for node in contents]
        means[key] = np.tensordot(weights, np.asarray(values, dtype=np.float64), axes=1).tolist()
    return means
