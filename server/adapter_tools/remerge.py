"""Merge a finished run again without some of its sites: an opt-out for which no site is asked.

In each round, the updates U_i = ΔW_i − ΔW_t of the sites that stay are merged again with the same
rule, weighting and guards, starting from the adapter that the new run has reached:

    ΔW'_0 = ΔW_0,    ΔW'_{t+1} = merge( ΔW'_t + U_i : i stays ).

Rules that read A and B by themselves (averages of factors, Flower's strategies, ``freeze_a``,
``alternate``) get the updates of the factors instead, A'_t + A_i − A_t and likewise B. ``fedsvd``
turns its shared factor in every round, so from the first round that differs, ``core_svd`` replaces
it: both give the best adapter of the rank.

After one round, the result is exactly what training without the leaving sites gives. After several,
an influence stays: in later rounds the other sites trained from adapters that the leaving sites had
a share in. In both cases, their share in the threshold, which decided what the others keep, stays.

Reference:
    G. Liu et al., FedEraser: Enabling Efficient Client-Level Data Removal from Federated Learning
    Models, IWQoS 2021, https://doi.org/10.1109/IWQOS52092.2021.9521274
    Differs from the paper: no further training calibrates the kept updates.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from fedwinnow.curation.adapters import checks
from fedwinnow.curation.adapters.algebra import combine
from fedwinnow.curation.adapters.peft_folder import export_adapter
from fedwinnow.curation.atomic_files import write_json
from fedwinnow.curation.config.run import RunConfig
from fedwinnow.curation.config.scoring import PluginSection
from fedwinnow.curation.datatypes import Adapter
from fedwinnow.curation.errors import ConfigError, OutputError
from fedwinnow.curation.protocol.phases import Phase
from fedwinnow.server.aggregation.count_guards import bound_reported_counts
from fedwinnow.server.aggregation.kept_adapters import load_round
from fedwinnow.server.aggregation.round_merge import RoundEvidence, complete_rank, merge_round
from fedwinnow.server.run.run_folder import RunFolder
from fedwinnow.server.state import RoundRecord, RunState, required, run_config
from fedwinnow.strategies.interfaces.merging import Memory


@dataclass(frozen=True, slots=True, kw_only=True)
class RemergeResult:
    """Result of merging a run again without some of its sites."""

    adapter: Adapter
    without: tuple[str, ...]
    rounds: int
    exact: bool
    """True where the others' updates hold no influence of the sites that left: one round only."""
    weights: tuple[dict[str, float], ...]
    """For each round: site → share."""


def remerge(folder: Path, without: Collection[str], *, arm: str = "curated") -> RemergeResult:
    """Merge a run's kept adapters again without the named sites.

    Raises:
        ConfigError: a site is no member, no site is left, or the rule changes the base.
        EmptySelectionError: a round has no adapter left to merge.
        OutputError: the run is not finished, or kept no adapters.
    """
    state = _finished(folder)
    config = run_config(state)
    _check_members(state, without)
    now, weights = required(state.initial, "initial"), list[dict[str, float]]()
    base = now.base
    memory: Memory = {}
    for number in range(1, config.training.rounds + 1):
        start, adapters, labels = load_round(folder, arm, number, base=base)
        record = _record(state, arm, number)
        stay = {site: one for site, one in adapters.items() if site not in without}
        counts = {site: labels[site].samples for site in stay}
        same = checks.adapter_hash(start) == checks.adapter_hash(now)
        move = _unmoved if same else _mover(config)
        merged = merge_round(
            {site: move(complete_rank(one, start), start, now) for site, one in stay.items()},
            bound_reported_counts(counts, state.members, config.guards)[0],
            now,
            None,
            config if same else _standing_in(config),
            seen=RoundEvidence(
                left_out={
                    site: record.sites[site].bounded
                    for site in adapters
                    if record.sites[site].judged and site not in without
                },
                alignments={site: one.alignment for site, one in record.sites.items()},
                effects={site: one.effects for site, one in record.sites.items()},
                before=weights[-1] if weights else {},
            ),
            memory=memory,
        )
        if merged.change is not None:
            message = (
                f"merging.name = {config.merging.name!r} changes the base from round to round, so "
                "a run with it cannot be merged anew; choose a rule that leaves the base as it is"
            )
            raise ConfigError(message)
        now, memory = merged.adapter, merged.memory
        weights.append(dict(merged.weights))
    return RemergeResult(
        adapter=now,
        without=tuple(sorted(without)),
        rounds=config.training.rounds,
        exact=config.training.rounds == 1,
        weights=tuple(weights),
    )


def _check_members(state: RunState, without: Collection[str]) -> None:
    strange = sorted(set(without) - set(state.sites))
    if strange:
        message = (
            f"--without {strange[0]}: no member of run {state.run}; its members are "
            f"{', '.join(state.sites)}"
        )
        raise ConfigError(message)
    if set(state.sites) <= set(without):
        message = (
            f"--without {', '.join(without)}: names every site of run {state.run}, and nothing is "
            "left to merge; leave a site in"
        )
        raise ConfigError(message)


def write_remerged(found: RemergeResult, out: Path, config: RunConfig) -> None:
    """Write the adapter as a PEFT folder, and how it was merged as ``remerge.json``.

    Raises:
        OutputError: the folder is there already, or cannot be written.
    """
    if out.exists():
        message = f"{out}: is there already; choose another folder with --out"
        raise OutputError(message)
    export_adapter(
        found.adapter,
        out,
        base_name=config.model.name,
        target_modules=config.adapter.names_of(found.adapter.modules),
        dropout=config.adapter.dropout,
    )
    about = {
        "without": list(found.without),
        "rounds": found.rounds,
        "exact": found.exact,
        "weights": list(found.weights),
        "adapter": checks.adapter_hash(found.adapter),
    }
    write_json(out / "remerge.json", about)


def move_update(adapter: Adapter, start: Adapter, now: Adapter) -> Adapter:
    """Return the adapter at ``now`` plus this adapter's update from ``start``, exactly.

    A factor that all three share is kept; otherwise factors are stacked.
    """
    return combine([(1.0, now), (1.0, adapter), (-1.0, start)], now)


def move_factors(adapter: Adapter, start: Adapter, now: Adapter) -> Adapter:
    """Return the factors of ``now`` plus this adapter's update of the factors from ``start``.

    A factor that nobody trained is that of ``now``, bit for bit.

    Raises:
        ConfigError: ranks changed from round to round.
    """
    a, b = {}, {}
    for module in now.modules:
        size = adapter.scales[module] / now.scales[module]
        shapes = {one.a[module].shape for one in (adapter, start, now)}
        if len(shapes) > 1 or start.scales[module] != adapter.scales[module]:
            message = (
                f"{module}: ranks or scales changed from round to round, so this rule's updates "
                "cannot be moved; merge the kept folders with 'fedwinnow merge' instead"
            )
            raise ConfigError(message)
        a[module] = _shifted(now.a[module], adapter.a[module], start.a[module], 1.0)
        b[module] = _shifted(now.b[module], adapter.b[module], start.b[module], size)
    return replace(now, a=a, b=b)


def _shifted(now: Tensor, end: Tensor, start: Tensor, size: float) -> Tensor:
    if torch.equal(end, start):
        return now
    return (now.double() + size * (end.double() - start.double())).to(now.dtype)


def _unmoved(adapter: Adapter, _start: Adapter, _now: Adapter) -> Adapter:
    return adapter


def _mover(config: RunConfig) -> Callable[[Adapter, Adapter, Adapter], Adapter]:
    """Return the function that moves the updates of the run's rule to another start."""
    rule = config.merging.name
    own = rule in {"fedavg_factors", "freeze_a", "alternate"} or rule.startswith("flower:")
    return move_factors if own else move_update


def _standing_in(config: RunConfig) -> RunConfig:
    """Return the configuration with ``core_svd`` for ``fedsvd``, which cannot go on by itself."""
    if config.merging.name != "fedsvd":
        return config
    return replace(config, merging=PluginSection(name="core_svd"))


def read_configuration(folder: Path) -> RunConfig:
    """Return the configuration of a finished run.

    Raises:
        OutputError: the folder holds no run, or the run is not finished.
    """
    return run_config(_finished(folder))


def _record(state: RunState, arm: str, number: int) -> RoundRecord:
    place = (Phase.TRAIN.value, arm, number)
    return next(one for one in state.records if (one.phase, one.arm, one.round) == place)


def _finished(folder: Path) -> RunState:
    state = RunFolder(folder=folder).load()
    if state is None:
        message = f"{folder}: holds no run; name a run folder, such as runs/NAME"
        raise OutputError(message)
    if state.phase != Phase.DONE.value:
        message = f"{folder}: the run is in phase {state.phase}; finish it first with --resume"
        raise OutputError(message)
    return state
