"""Measure how much each group of signals gains the scorer ``calibrated``, and its cost.

The scorer is fitted anew on the tables of a study's finished runs: without a group, on one forward
pass alone, and without one of its two parts (discriminative, typicality). The cost is measured in
seconds: passes over public rows with and without the group's columns, in turn, at the run's
adapters.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

import numpy as np

from fedwinnow.client.runs.process_cache import ProcessCache
from fedwinnow.client.runs.site_run import load_checked_adapter
from fedwinnow.client.signals.collect import signal_measurer
from fedwinnow.client.site import Site
from fedwinnow.curation.adapters.checks import adapter_hash
from fedwinnow.curation.atomic_files import write_atomically, write_json
from fedwinnow.curation.config.identity import run_id, sites_folder
from fedwinnow.curation.config.load_files import site_configs
from fedwinnow.curation.config.run import RunConfig
from fedwinnow.curation.config.strict_toml import to_plain
from fedwinnow.curation.datatypes import PublicRows, Trajectory
from fedwinnow.curation.errors import ConfigError
from fedwinnow.curation.protocol.header import Header
from fedwinnow.curation.scores.ranking_metrics import auroc
from fedwinnow.curation.signal_columns import GRADIENTS, ONCE
from fedwinnow.simulations.studies.definitions import Plan
from fedwinnow.simulations.studies.markdown import markdown_table
from fedwinnow.simulations.studies.unforeseen_kinds import Measured, aurocs_without, read_measured
from fedwinnow.strategies.scorers.calibrated import LATER, PAYING, SIGNALS, Calibrated, calibrated

COLUMNS = frozenset[str]().union(*(columns for columns, _ in SIGNALS.values()))
"""All columns that the scorer can read."""
SAMPLES = 8
"""Public rows that a timed pass measures."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Signals that are left out together."""

    columns: frozenset[str]
    checkpoints: bool = False
    """Whether every checkpoint after the untrained adapter is left out too."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Gain:
    """AUROCs of the scorer without a group of signals, in [0, 1], and the cost of the group."""

    without: str
    """Name of the group; "nothing" for all signals."""
    auroc_pooled: float
    auroc_swap: float | None
    """Clean against swapped answers; None where none was planted."""
    auroc_left_out: float | None
    """Mean over kinds of corruption that the fit never saw."""
    seconds_per_sample: float | None
    """Seconds that measuring the group takes; None where not timed or no group of signals."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GainRow:
    """Gain in one run of a study."""

    study: str
    split: str
    seed: int
    gain: Gain

    def to_json(self) -> dict[str, object]:
        """Return the row as a flat JSON object."""
        gain: dict[str, object] = to_plain(self.gain)
        return {"study": self.study, "split": self.split, "seed": self.seed, **gain}


GROUPS: Mapping[str, Group] = {
    "gradients": Group(columns=GRADIENTS & COLUMNS),
    "trajectory (warm-up, later loss, gradients)": Group(
        columns=GRADIENTS & COLUMNS, checkpoints=True
    ),
    "contrast with other prompts": Group(
        columns=frozenset({"contrast_loss_mean", "contrast_loss_min"})
    ),
    "unconditional loss": Group(columns=frozenset({"unconditional_loss"})),
    "representation": Group(columns=frozenset({"representation"})),
    "spread and tail of token losses": Group(columns=frozenset({"loss_sd", "loss_q90"})),
    "end of turn": Group(columns=frozenset({"end_loss", "has_end"})),
    "length": Group(columns=frozenset({"length"})),
    "all that the default leaves out": Group(
        columns=COLUMNS.difference(*(SIGNALS[name][0] for name in PAYING)), checkpoints=True
    ),
}
"""Name → signals that are left out."""


def ablate(plan: Plan, *, folder: Path, command: str, cache: ProcessCache) -> str:
    """Write NAME_signals.json and NAME_signals.md of a study that has run; return the page.

    Raises:
        ConfigError: a split's scorer is another than ``calibrated``, or no truth is planted.
        OutputError: a run of the study is not there, or the folder cannot be written.
    """
    rows: list[GainRow] = []
    for split, configure in plan.splits.items():
        for seed in plan.seeds:
            timed = 0 if rows else 3  # a pass costs the same at every seed
            found = ablation(configure(seed), cache=cache, repetitions=timed)
            rows += [GainRow(study=plan.title, split=split, seed=seed, gain=gain) for gain in found]
    tree = {
        "study": plan.title,
        "command": command,
        "seeds": list(plan.seeds),
        "rows": [row.to_json() for row in rows],
    }
    text = ablation_page(plan, rows, command)
    write_json(folder / f"{plan.title}_signals.json", tree)
    write_atomically(folder / f"{plan.title}_signals.md", text.encode())
    return text


def ablation(config: RunConfig, *, cache: ProcessCache, repetitions: int = 3) -> list[Gain]:
    """Return a run's gains: without each group, without each part, on one forward pass alone.

    Args:
        config: The run's configuration; its scorer is ``calibrated`` and truth is planted.
        cache: Process cache with the loaded model.
        repetitions: Timed passes of each kind, of which the median counts; 0 times nothing.

    Raises:
        ConfigError: the scorer is another, or no truth is planted.
        OutputError: the run folder holds no finished run of these settings.
    """
    measured = read_measured(config)
    if measured is None or config.scorer.name != "calibrated":
        message = (
            "an ablation needs study.truth and scorer.name = 'calibrated', got "
            f"{config.study.truth!r} and {config.scorer.name!r}; run the study with both"
        )
        raise ConfigError(message)
    seconds = _costs(config, measured, cache, repetitions) if repetitions else {}
    cases = [("nothing", measured, _reader(measured))]
    for name, group in GROUPS.items():
        less = _drop(measured, group)
        cases.append((name, less, _reader(less)))
    plain = Group(
        columns=COLUMNS - {"loss", "loss_sd", "loss_q90", "length", "end_loss", "has_end"},
        checkpoints=True,
    )
    less = _drop(measured, plain)
    cases.append(("all but one forward pass", less, _reader(less)))
    cases.append(("the discriminative part", measured, _reader(measured, safeguard=1.0)))
    cases.append(("typicality", measured, _reader(measured, safeguard=0.0)))
    return [_gain(name, rows, scorer, seconds.get(name)) for name, rows, scorer in cases]


def _reader(measured: Measured, *, safeguard: float = 0.5) -> Calibrated:
    """Return the scorer with every group of signals that the run measured."""
    once = len(measured.public.trajectory) == 1
    names = [name for name in SIGNALS if not (once and name in LATER)]
    return calibrated(safeguard=safeguard, signals=names)


def _drop(measured: Measured, group: Group) -> Measured:
    """Return the same run without a group's columns."""

    def less(trajectory: Trajectory) -> Trajectory:
        kept = trajectory[:1] if group.checkpoints else trajectory
        return tuple(
            replace(
                table,
                columns={n: v for n, v in table.columns.items() if n not in group.columns},
            )
            for table in kept
        )

    public = measured.public
    return replace(
        measured,
        public=PublicRows(
            trajectory=less(public.trajectory), kinds=public.kinds, parents=public.parents
        ),
        private=tuple(less(trajectory) for trajectory in measured.private),
    )


def _gain(name: str, measured: Measured, scorer: Calibrated, seconds: float | None) -> Gain:
    fitted = scorer.fit(measured.public)
    scores = np.concatenate([scorer.score(one, fitted) for one in measured.private])
    clean, known = measured.kinds == "clean", ~np.isnan(scores)
    swap = known & (clean | (measured.kinds == "swap"))
    unforeseen = aurocs_without(measured, scorer)
    swapped = (measured.kinds == "swap").any()
    return Gain(
        without=name,
        auroc_pooled=auroc(scores[known], clean[known]),
        auroc_swap=auroc(scores[swap], clean[swap]) if swapped else None,
        auroc_left_out=float(np.mean([*unforeseen.values()])) if unforeseen else None,
        seconds_per_sample=seconds,
    )


def _costs(
    config: RunConfig, measured: Measured, cache: ProcessCache, repetitions: int
) -> Mapping[str, float]:
    """Return group → seconds a sample that it adds to a pass; "nothing" → the whole pass."""
    state = measured.state
    site = Site(config=site_configs(config, str(sites_folder(config)))[0], cache=cache)
    work = site.run_of(run_id(config))
    samples = work.data.rows.samples[:SAMPLES]
    held = [state.initial, *(one.adapter for one in state.checkpoints)]

    def passes(group: Group) -> Callable[[], None]:
        """Return a function that measures the samples at every checkpoint without a group."""
        used = held[:1] if group.checkpoints else held
        tables = []
        for checkpoint, adapter in enumerate(used):
            if adapter is None:
                continue
            kept = COLUMNS - group.columns
            columns = kept - GRADIENTS if checkpoint == 0 else kept - ONCE
            found = adapter_hash(adapter)
            header = Header(run=state.run, phase="measure", adapter=found)
            table = signal_measurer(work, found, columns=columns, checkpoint=checkpoint)
            tables.append((header, adapter, table))

        def once() -> None:
            for header, adapter, table in tables:
                load_checked_adapter(work, header, adapter)
                table(samples, "ablation")

        once()  # references are made once, and belong to no pass
        return once

    plans = {name: passes(group) for name, group in GROUPS.items()}
    plans["nothing"] = passes(Group(columns=frozenset()))
    spent: dict[str, list[float]] = {name: [] for name in plans}
    for _ in range(repetitions):
        for name, once in plans.items():
            began = time.perf_counter()
            once()
            spent[name].append((time.perf_counter() - began) / len(samples))
    whole = median(spent["nothing"])
    return {
        name: whole if name == "nothing" else whole - median(times) for name, times in spent.items()
    }


def ablation_page(plan: Plan, rows: Sequence[GainRow], command: str) -> str:
    """Return the Markdown page: for each split a table of means over seeds and of gains."""
    lines = [
        f"# What each signal of `calibrated` gains in study `{plan.title}`",
        "",
        (
            f"Command: `{command}`. Seeds: {', '.join(map(str, plan.seeds))}. AUROC of clean "
            "against corrupted, mean over seeds; lost: the pooled AUROC with everything minus this "
            "one. Seconds: what measuring the group takes beyond a pass without it (first line: "
            "the whole pass), median of passes in turn at the first seed; warm-up is not counted."
        ),
    ]
    for split in plan.splits:
        gains = [row.gain for row in rows if row.split == split]
        lines += ["", f"## Split `{split}`", "", _split_table(gains)]
    return "\n".join([*lines, ""])


def _split_table(gains: Sequence[Gain]) -> str:
    everything = _mean([gain.auroc_pooled for gain in gains if gain.without == "nothing"])
    rows = []
    for name in dict.fromkeys(gain.without for gain in gains):
        mine = [gain for gain in gains if gain.without == name]
        pooled = _mean([gain.auroc_pooled for gain in mine])
        lost = None if pooled is None or everything is None else everything - pooled
        rows.append(
            [
                name,
                _said(pooled),
                _said(lost, "+.3f"),
                _said(_mean([gain.auroc_swap for gain in mine])),
                _said(_mean([gain.auroc_left_out for gain in mine])),
                _said(_mean([gain.seconds_per_sample for gain in mine]), ".4f"),
            ]
        )
    head = ["without", "pooled", "lost", "swap", "kinds left out", "seconds a sample"]
    return markdown_table(head, rows)


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def _said(value: float | None, form: str = ".3f") -> str:
    return "–" if value is None else format(value, form)
