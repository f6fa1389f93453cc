"""Run any Flower strategy as a merging rule on factors: ``flower:FedAdam``, ``flower:Krum``, ….

The name after ``flower:`` is looked up among the public classes of ``flwr.serverapp.strategy`` and
nowhere else. A round of the strategy is played in the process: the strategy gets the previous
adapter, and each site's factors as replies, with the site's weight as ``num-examples``. The factors
are float64 arrays ``MODULE.lora_A`` and ``MODULE.lora_B``, B brought to the previous scale.

Such a rule acts on A and B separately, not on the product B A, so not even ``flower:FedAvg`` is
exact (see ``fedavg_factors``); the error is reported. Rules of
statistics or distances (FedMedian, FedTrimmedAvg, Krum, Bulyan) do not look at the weights.

State between rounds (moments of FedAdam, momentum of FedAvgM) is taken out of the strategy after a
round and put back before the next, so it is committed with the run and a resumed run goes on with
the same bits. A strategy is refused as soon as its state holds anything but arrays and numbers.

Reference:
    D. J. Beutel et al., Flower: A Friendly Federated Learning Research Framework, 2020,
    https://arxiv.org/abs/2007.14390; each class's own documentation names its paper.
    Differs from Flower: a rule sees the sites that trained, all of them, in order of name.
"""

import contextlib
import inspect
import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from flwr.app import ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from flwr.serverapp import strategy as flower_strategies
from flwr.serverapp.strategy import FedAvg, Strategy

from fedwinnow.curation.adapters import algebra as maths
from fedwinnow.curation.adapters import checks
from fedwinnow.curation.datatypes import Adapter
from fedwinnow.curation.errors import (
    IncompatibleAdapterError,
    PluginError,
    RunError,
)
from fedwinnow.curation.protocol.flower_records import array_record, read_arrays
from fedwinnow.strategies.interfaces.merging import Memory, Merged, Merging
from fedwinnow.strategies.merging.flower.ranges import check_ranges, check_sites, fewest_sites
from fedwinnow.strategies.merging.flower.state import ROUNDS, Arrays, restore, state_of

OWN = frozenset(inspect.signature(FedAvg).parameters)
"""FedAvg's settings: which nodes take part and how records are named; a rule has none of them."""
SILENT: Mapping[str, Any] = {"fraction_train": 0.0}
"""FedAvg's setting under which a strategy notes the arrays of a round and asks no node."""
REFUSED: Mapping[str, str] = {
    "FedProx": "its term belongs to training; choose training.objective = 'proximal'",
    "QFedAvg": "it needs each site's training loss, which a merging rule is not told",
    "FedXgbBagging": "it merges trees, not factors",
    "FedXgbCyclic": "it merges trees, not factors",
    "Strategy": "it is the base class of all strategies",
    "Result": "it is no strategy",
}
"""Why a public name of Flower is no rule; wrappers that take a strategy need no row here."""


def flower_names() -> tuple[str, ...]:
    """Return the strategies of the installed Flower that can merge, sorted, without the prefix."""
    return tuple(name for name in sorted(flower_strategies.__all__) if not _why_not(name))


def flower(name: str) -> Callable[..., Merging]:
    """Return the factory of ``flower:NAME``; its settings are the strategy's own.

    Raises:
        PluginError: Flower has no such strategy, or it cannot merge factors.
    """
    why = _why_not(name)
    if why:
        message = (
            f"merging 'flower:{name}': {why}; choose one of "
            f"{', '.join('flower:' + known for known in flower_names())}"
        )
        raise PluginError(message)
    strategy: type[Strategy] = getattr(flower_strategies, name)

    def make(**settings: Any) -> Merging:  # noqa: ANN401 - whatever the strategy's constructor takes
        check_ranges(settings)
        rule = FlowerRule(name, strategy, settings)
        rule.make()  # a wrong value shows before a round is trained
        return rule

    parameters = [
        parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY)
        for key, parameter in _settings(strategy).items()
    ]
    make.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]  # read by inspect
    head = inspect.getdoc(inspect.getmodule(strategy)) or ""
    make.__doc__ = f"{inspect.getdoc(strategy)}\n\n{head}"
    make.__name__ = name
    return make


def _why_not(name: str) -> str:
    """Return why a name is no rule; "" where it is one."""
    if name not in flower_strategies.__all__:
        return "the installed Flower has no such strategy"
    if name in REFUSED:
        return REFUSED[name]
    strategy = getattr(flower_strategies, name)
    if not (inspect.isclass(strategy) and issubclass(strategy, Strategy)):
        return "it is no strategy"
    if not issubclass(strategy, FedAvg):
        return "it wraps another strategy, and needs that one's own messages"
    return ""


def _settings(strategy: type[Strategy]) -> dict[str, inspect.Parameter]:
    """Return the constructor arguments that are numbers or texts and not in :data:`OWN`."""
    parameters = inspect.signature(strategy).parameters.items()
    return {
        key: parameter
        for key, parameter in parameters
        if key not in OWN and "Callable" not in str(parameter.annotation)
    }


class FlowerRule:
    """Merging rule that plays one round of a Flower strategy a call; see the module."""

    def __init__(self, name: str, strategy: type[Strategy], settings: Mapping[str, Any]) -> None:
        """Take the class and its settings."""
        self.name = name
        self.strategy = strategy
        self.settings = dict(settings)
        self.fewest = fewest_sites(name, settings)

    def __call__(
        self, adapters: Mapping[str, Adapter], weights: Mapping[str, float], previous: Adapter
    ) -> Merged:
        """Merge as in a first round."""
        return self.merge_with_state(adapters, weights, previous, {})[0]

    def make(self) -> Any:  # noqa: ANN401 - attributes of strategies share no type
        """Make a fresh strategy that sends no message of its own."""
        with _quiet():
            return self.strategy(**{**SILENT, **self.settings})

    def merge_with_state(
        self,
        adapters: Mapping[str, Adapter],
        weights: Mapping[str, float],
        previous: Adapter,
        memory: Memory,
    ) -> tuple[Merged, Memory]:
        """Play a round of the strategy; see :class:`StatefulMerging`.

        Raises:
            ConfigError: fewer sites than the strategy needs for its ``num_malicious_nodes``.
            IncompatibleAdapterError: bases, modules, shapes or ranks differ.
            NonFiniteError: a factor, the result or the strategy's state is not finite.
            RunError: the strategy gives nothing for these sites, or refuses them.
        """
        checks.check_compatible(adapters, previous)
        shares = checks.normalise_weights(adapters, weights)
        check_sites(self.name, self.settings, len(shares))
        for site in shares:
            _check_ranks(self.name, site, adapters[site], previous)
        server_round = 1 + int(memory[ROUNDS][0]) if memory else 1
        with _quiet():
            strategy = self.make()
            fresh = dict(vars(strategy))
            restore(strategy, memory)
            found = self._round(strategy, server_round, adapters, shares, previous)
        merged = _adapter_of(found, previous)
        checks.check_adapter(merged)
        kept = state_of(self.name, strategy, fresh)
        if kept or memory:
            kept[ROUNDS] = np.array([float(server_round)])
        return Merged(adapter=merged, report=_report(merged, adapters, shares)), kept

    def _round(
        self,
        strategy: Any,  # noqa: ANN401 - see make
        server_round: int,
        adapters: Mapping[str, Adapter],
        shares: Mapping[str, float],
        previous: Adapter,
    ) -> Arrays:
        """Return the arrays that the strategy makes of the sites' factors."""
        replies = []
        for number, (site, share) in enumerate(shares.items(), start=1):
            metrics = MetricRecord({strategy.weighted_by_key: share})
            record: dict[str, Any] = {
                "arrays": _record(adapters[site], previous),
                "metrics": metrics,
            }
            node = SimpleNamespace(src_node_id=number)
            replies.append(_Reply(content=RecordDict(record), metadata=node))
        try:
            # With fraction_train = 0 it takes note of the arrays, asks no grid and sends nothing.
            strategy.configure_train(
                server_round, _record(previous, previous), ConfigRecord(), None
            )
            arrays, _ = strategy.aggregate_train(server_round, replies)
        except Exception as error:  # what a strategy may raise is its own business
            message = f"merging 'flower:{self.name}' with {len(replies)} sites: {error}; "
            raise RunError(message + "change its settings or choose another rule") from error
        if arrays is None:
            message = (
                f"merging 'flower:{self.name}' gives nothing for {len(replies)} sites; it needs "
                "more of them (Bulyan: 4 × num_malicious_nodes + 3), or another rule"
            )
            raise RunError(message)
        return read_arrays(arrays)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Reply:
    """Stand-in for a reply to a strategy; Flower makes real messages only inside a running task."""

    content: RecordDict
    metadata: SimpleNamespace

    def has_error(self) -> bool:
        return False

    def has_content(self) -> bool:
        return True


def _check_ranks(name: str, site: str, adapter: Adapter, previous: Adapter) -> None:
    for module in previous.modules:
        expected, came = previous.a[module].shape[0], adapter.a[module].shape[0]
        if came != expected:
            message = (
                f"merging 'flower:{name}', site {site!r}, module {module}: expected rank "
                f"{expected}, got {came}; use one adapter.rank, or merging = 'core_svd'"
            )
            raise IncompatibleAdapterError(message)


def _record(adapter: Adapter, previous: Adapter) -> ArrayRecord:
    """Return the factors under the previous scale as Flower's record; always in one order."""
    arrays: Arrays = {}
    for module in previous.modules:
        scale = adapter.scales[module] / previous.scales[module]
        arrays[f"{module}.lora_A"] = adapter.a[module].to(torch.float64).numpy()
        arrays[f"{module}.lora_B"] = (scale * adapter.b[module].to(torch.float64)).numpy()
    return array_record(arrays)


def _adapter_of(arrays: Arrays, previous: Adapter) -> Adapter:
    a, b = {}, {}
    for module in previous.modules:
        right, left = arrays[f"{module}.lora_A"], arrays[f"{module}.lora_B"]
        a[module] = torch.from_numpy(np.array(right)).to(previous.a[module].dtype)
        b[module] = torch.from_numpy(np.array(left)).to(previous.b[module].dtype)
    return Adapter(base=previous.base, a=a, b=b, scales=dict(previous.scales))


def _report(
    merged: Adapter, adapters: Mapping[str, Adapter], shares: Mapping[str, float]
) -> dict[str, float]:
    """Return ``rank``, ``target_norm`` (‖ΔW*‖), ``error_norm`` (off ΔW*) and their quotient."""
    error = target = 0.0
    for module in merged.modules:
        wanted = maths.target(adapters, shares, module)
        error += maths.norm(maths.sum_products([wanted, maths.delta(merged, module, -1.0)])) ** 2
        target += maths.norm(wanted) ** 2
    report = {
        "rank": float(max(factor.shape[0] for factor in merged.a.values())),
        "target_norm": target**0.5,
        "error_norm": error**0.5,
    }
    return report | ({"relative_error": (error / target) ** 0.5} if target > 0 else {})


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence Flower's own log lines inside the block: a rule is no run."""
    logger = logging.getLogger("flwr")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
