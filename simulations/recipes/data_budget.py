"""Fit the law of `budget` to short runs on each quality bucket (``fedwinnow budget``).

A simulation scores its silos, pools their samples, and cuts them by score into equal buckets; each
trains from the untrained adapter at a small rate, and one run gives the losses after 1, 2, 4, 8
passes. Buckets across silos exist in a simulation, in a single silo, or of public samples: in a
federation they would be a further release, so no deployed site is asked for anything here.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from fedwinnow.client.data.samples import Samples, open_samples
from fedwinnow.client.measuring.pass_options import OnTaskProgress, PassOptions
from fedwinnow.client.runs import tables
from fedwinnow.client.runs.process_cache import ProcessCache, set_deterministic
from fedwinnow.client.runs.run_files import simulated_run_files
from fedwinnow.curation.config.run import RunConfig
from fedwinnow.curation.config.scoring import PluginSection
from fedwinnow.curation.config.strict_toml import to_toml
from fedwinnow.curation.config.training import StudySection
from fedwinnow.curation.datatypes import Sample
from fedwinnow.curation.errors import ConfigError, DataError
from fedwinnow.curation.model.lora_model import initial_adapter
from fedwinnow.curation.seeds import derive_seed
from fedwinnow.server.run.driver import Progress
from fedwinnow.simulations.recipes.choosing_holdout import scenario_holdout
from fedwinnow.simulations.recipes.compare import named_by_content
from fedwinnow.simulations.recipes.proxy_runs import ProxyPlan, ProxyRanking, proxy_ranking
from fedwinnow.simulations.runtimes.in_process import run_phases
from fedwinnow.strategies.maths.data_scaling_law import (
    HALF_LIVES,
    LawFit,
    expected_losses,
    fit_law,
    most_worth,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class BudgetPlan:
    """Settings of the fit."""

    steps: int
    """Optimizer steps of each site that the budget allows, at least 1."""
    buckets: int = 4
    """Quality buckets, at least 2."""
    passes: tuple[int, ...] = (1, 2, 4, 8)
    """Passes over a bucket after which the loss is taken, ascending, at least three."""
    seeds: int = 2
    """Runs of each bucket, at least 1."""
    most: int = 64
    """Most samples of a bucket that the runs use, at least 1."""
    rate: float = 0.1
    """Learning rate of the runs, as a share of training.learning_rate, in (0, 1]."""

    def __post_init__(self) -> None:
        wrong = {
            "--steps": self.steps < 1,
            "--buckets": self.buckets < 2,  # noqa: PLR2004 - one bucket leaves no choice
            "--passes": len(self.passes) < 3  # noqa: PLR2004 - the law needs three
            or self.passes[0] < 1
            or list(self.passes) != sorted(set(self.passes)),
            "--seeds": self.seeds < 1,
            "--most": self.most < 1,
            "--rate": not 0 < self.rate <= 1,
        }
        for option, bad in wrong.items():
            if bad:
                value = getattr(self, option.strip("-"))
                message = (
                    f"{option} {value}: out of range; allowed: at least 1 step, seed and sample, 2 "
                    "buckets, three ascending numbers of passes, and a rate in (0, 1]"
                )
                raise ConfigError(message)


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """Fitted law, and the losses that it expects and those that were measured."""

    fit: LawFit
    seen: float
    """Number of samples seen within the budget, repeats included."""
    size: float
    """Number of samples of one bucket over the federation."""
    expected: tuple[float, ...]
    """Loss for the best 1, 2, … buckets."""
    measured: np.ndarray
    """(buckets, checkpoints), nats; means over seeds and items."""
    rate: float
    """Share of the scenario's learning rate at which the buckets were run."""
    ranking: ProxyRanking

    @property
    def best(self) -> int:
        """Return the number of buckets to keep."""
        return most_worth(self.expected)

    def doubts(self) -> tuple[str, ...]:
        """Return reasons to doubt the result, in words."""
        law, expected = self.fit.law, self.expected
        where = f"Losses are those of training at {self.rate:g} of the scenario's learning rate"
        words = [
            "The law was found for contrastive pre-training; for LoRA it is an experiment.",
            f"{where}: compare them with one another only.",
        ]
        if max(expected) - min(expected) < self.fit.error * min(expected):
            words.append(
                f"Expected losses differ by less than the fit's error ({self.fit.error:.2%}): how "
                "much to keep is not decided by this; give more seeds, or more samples of a bucket."
            )
        ends = (HALF_LIVES[0] * 1.01, HALF_LIVES[1] / 1.01)
        at_end = [
            f"{place}" for place, tau in enumerate(law.half_lives, 1) if not ends[0] < tau < ends[1]
        ]
        if at_end:
            words.append(
                f"The half-life of bucket {', '.join(at_end)} lies at the end of its range: passes "
                "at this rate do not show what repetition is worth; raise --rate."
            )
        if list(law.utilities) != sorted(law.utilities):
            words.append("A worse bucket has more utility: scores do not order what helps here.")
        return tuple(words)

    def settings(self) -> dict[str, Any]:
        """Return the settings of the threshold ``budget``, with six digits each."""
        law = self.fit.law
        return {
            "samples": _short(self.seen),
            "utilities": [_short(b) for b in law.utilities],
            "half_lives": [_short(tau) for tau in law.half_lives],
            "scale": _short(law.scale),
            "floor": _short(law.floor),
            "bucket": _short(law.pool),
            "error": _short(self.fit.error),
        }

    def section(self) -> str:
        """Return ``[threshold]`` as TOML."""
        return to_toml({"threshold": {"name": "budget", "settings": self.settings()}})


def fit_budget(
    config: RunConfig,
    plan: BudgetPlan,
    *,
    progress: Progress | None = None,
    on_progress: OnTaskProgress | None = None,
) -> Budget:
    """Score the silos, run the buckets, fit the law; deterministic on a CPU.

    The scoring run lies in ``NAME-budget-…`` beside the scenario's own run folder; a finished one
    is not run again. Only the half of the hold-out that chooses is used.

    Raises:
        CurationError: whatever stops a run; a bucket that would be empty is a :class:`DataError`.
    """
    scoring = _scoring(config)
    cache = ProcessCache(progress=on_progress)
    run_phases(scoring, resume=True, progress=progress, cache=cache)
    pool, scores = _pooled(scoring)
    pools = buckets(pool, scores, plan.buckets, most=plan.most, seed=config.run.seed)
    size = len(next(iter(pools.values())))
    section, public = config.training, scenario_holdout(config)
    draws = section.batch_size * section.accumulation
    checkpoints = tuple(max(1, math.ceil(k * size / draws)) for k in plan.passes)
    set_deterministic(config.run.threads)
    loaded = cache.model(config.model, config.adapter, config.run.seed)
    ranking = proxy_ranking(
        loaded,
        pools,
        [s for s, chooses in zip(public.samples, public.choosing, strict=True) if chooses],
        start=initial_adapter(loaded, seed=derive_seed(config.run.seed, "adapter")),
        section=section,
        plan=ProxyPlan(
            learning_rate=plan.rate * section.learning_rate,
            checkpoints=checkpoints,
            seeds=tuple(derive_seed(config.run.seed, "budget", i) for i in range(plan.seeds)),
            early_stop=False,  # the law needs every bucket
            options=PassOptions.of(config.model, config.measuring),
        ),
        on_progress=on_progress,
    )
    measured = np.stack([ranking.curves[name].mean(axis=(0, 2)) for name in pools])
    fit = fit_law(measured, draws * np.array(checkpoints, dtype=np.float64), pool=float(size))
    seen, whole = float(plan.steps * draws * len(config.sites)), len(scores) / plan.buckets
    return Budget(
        fit=fit,
        seen=seen,
        size=whole,
        rate=plan.rate,
        expected=expected_losses(fit.law, seen, whole),
        measured=measured,
        ranking=ranking,
    )


def buckets(
    samples: Sequence[Sample], scores: np.ndarray, number: int, *, most: int, seed: int
) -> dict[str, list[Sample]]:
    """Split samples into equal parts by score, best first; cut each at random to the same size.

    Args:
        samples: Samples of all silos, in any order.
        scores: One score per sample, finite.
        number: Buckets, at least 1.
        most: Most samples of a bucket.
        seed: Seed of the random cut.

    Raises:
        DataError: there are fewer samples than buckets.
    """
    if len(samples) < number:
        message = (
            f"budget: {len(samples)} scored samples leave a bucket of {number} empty; lower "
            "--buckets or give the silos more data"
        )
        raise DataError(message)
    order = sorted(range(len(samples)), key=lambda i: (-scores[i], samples[i].id))
    parts = np.array_split(np.array(order), number)
    size, found = min(most, *map(len, parts)), {}
    for place, part in enumerate(parts, start=1):
        random = np.random.default_rng(derive_seed(seed, "bucket", place))
        chosen = sorted(random.permutation(len(part))[:size].tolist())
        found[f"bucket {place}"] = [samples[part[i]] for i in chosen]
    return found


def _scoring(config: RunConfig) -> RunConfig:
    """Return a run of the scenario that ends with every sample's score."""
    bare = replace(
        config,
        scorer=replace(config.scorer, comparison=()),
        threshold=PluginSection(name="keep_all"),
        training=replace(config.training, rounds=0),
        study=StudySection(),
    )
    return named_by_content(bare, f"{config.run.name}-budget")


def _pooled(config: RunConfig) -> tuple[list[Sample], np.ndarray]:
    """Read every silo's scored samples from the folders of a finished scoring run."""
    samples: list[Sample] = []
    known: list[float] = []
    for site in config.sites:
        files = simulated_run_files(config, site.name)
        ids, _, scores = tables.read_scores(files.scores, config.scorer.name)
        data: Samples = open_samples(site.data, site.columns, domain=site.domain)
        place = {sample_id: index for index, sample_id in enumerate(data.ids)}
        for sample_id, score in zip(ids, scores.tolist(), strict=True):
            if not math.isnan(score):
                samples.append(data[place[sample_id]])
                known.append(score)
    return samples, np.array(known)


def _short(number: float) -> float:
    return float(f"{number:.6g}")
