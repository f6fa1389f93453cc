"""Find the best weights to merge sites' adapters, by a law of mixing (``fedwinnow mixture RUN``).

The kept adapters of one training round are merged with many weights (every site alone, all alike,
and draws from the whole simplex), each merge is measured on public anchors, and a law fitted to the
losses gives the best mixture. Nothing is trained, and no site is asked. The hold-out that runs are
evaluated on is not touched: reference and calibration anchors are measured.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fedwinnow.client.data.anchors import split_scenario_anchors
from fedwinnow.client.measuring.evaluation import evaluate
from fedwinnow.client.measuring.pass_options import OnTaskProgress, PassOptions
from fedwinnow.client.runs.process_cache import ProcessCache
from fedwinnow.curation.config.run import RunConfig
from fedwinnow.curation.datatypes import Adapter, Sample
from fedwinnow.curation.errors import ConfigError
from fedwinnow.curation.model.lora_model import set_adapter
from fedwinnow.curation.seeds import derive_seed
from fedwinnow.server.adapter_tools.remerge import read_configuration
from fedwinnow.server.aggregation.kept_adapters import load_round
from fedwinnow.strategies.interfaces.merging import Merging
from fedwinnow.strategies.maths.mixture_law import MixtureRun, best_mixture, fit_mixing_law
from fedwinnow.strategies.registry import build


@dataclass(frozen=True, slots=True, kw_only=True)
class Mixture:
    """Measured mixtures of one round and the best weights that follow from them."""

    round: int
    runs: tuple[MixtureRun, ...]
    weights: dict[str, float]
    """The best mixture by the law."""
    expected: dict[str, float]
    """Category → loss that the law expects there, nats."""
    measured: dict[str, float]
    """Category → loss of the best mixture as measured, nats."""
    alike: dict[str, float]
    """Category → loss with equal weights as measured, nats."""
    error: float
    """Root mean square of fitted − measured, nats."""


def fit_mixture(
    run: Path,
    *,
    count: int,
    number: int = 0,
    least: float = 0.02,
    most: float = 0.6,
    cache: ProcessCache | None = None,
    on_progress: OnTaskProgress | None = None,
) -> Mixture:
    """Measure mixtures of a finished run's kept adapters and find the best.

    Args:
        run: Run folder, of a run with ``keep.adapters = true``.
        count: Mixtures, at least sites + 2.
        number: Training round; 0 is the last.
        least: Smallest weight of a site.
        most: Largest weight of a site.
        cache: Process cache with the loaded model, or None.
        on_progress: Called after every mixture.

    Raises:
        ConfigError: fewer mixtures than the law needs.
        ModelError: the base model cannot be loaded.
        OutputError: the run is not finished, or kept no adapters.
    """
    config = read_configuration(run)
    place = number or config.training.rounds
    shop = cache or ProcessCache()
    loaded = shop.model(config.model, config.adapter, config.run.seed)
    start, adapters, _ = load_round(run, "curated", place, base=loaded.fingerprint)
    sites = tuple(sorted(adapters))
    if count < len(sites) + 2:
        message = (
            f"--mixtures {count}: expected at least {len(sites) + 2} for {len(sites)} sites; "
            "2 to 4 times the number of sites serve well"
        )
        raise ConfigError(message)
    measure = _measuring(config, shop)
    rule: Merging = build("merging", config.merging.name, config.merging.settings)

    def losses(weights: dict[str, float]) -> dict[str, float]:
        return measure(rule(adapters, weights, start).adapter)

    runs = []
    for done, weights in enumerate(_draw(sites, count, config.run.seed), start=1):
        runs.append(MixtureRun(weights=weights, losses=losses(weights)))
        if on_progress is not None:
            on_progress("mixtures", done, count)
    law = fit_mixing_law(runs, seed=config.run.seed)
    best = best_mixture(law, least=least, most=most)
    return Mixture(
        round=place,
        runs=tuple(runs),
        weights=best,
        expected=law.losses(best),
        measured=losses(best),
        alike=dict(runs[len(sites)].losses),
        error=law.error,
    )


def section_text(found: Mixture) -> str:
    """Return the scenario's ``[weighting]`` section as TOML."""

    def inline(values: Mapping[str, float]) -> str:
        return "{ " + ", ".join(f"{json.dumps(k)} = {v!r}" for k, v in values.items()) + " }"

    lines = ["[weighting]", 'name = "mixing_law"', ""]
    for one in found.runs:
        lines += ["[[weighting.settings.runs]]", f"weights = {inline(one.weights)}"]
        lines += [f"losses = {inline(one.losses)}", ""]
    return "\n".join(lines)


def _draw(sites: tuple[str, ...], count: int, seed: int) -> list[dict[str, float]]:
    """Return weights: every site alone, all alike, and the rest drawn evenly from the simplex."""
    number = len(sites)
    draw = np.random.default_rng(derive_seed(seed, "mixtures"))
    rows = [*np.eye(number), np.full(number, 1 / number)]
    rows += list(draw.dirichlet(np.ones(number), size=max(0, count - len(rows))))
    return [dict(zip(sites, row.tolist(), strict=True)) for row in rows[:count]]


def _measuring(config: RunConfig, cache: ProcessCache) -> Callable[[Adapter], dict[str, float]]:
    """Return a function from adapter to mean loss by domain, on anchors that no evaluation uses."""
    split = split_scenario_anchors(config.anchors, config.run.seed)
    anchors: list[Sample] = [*split.reference, *split.calibration]
    domains = np.array([sample.domain for sample in anchors])
    loaded = cache.model(config.model, config.adapter, config.run.seed)

    def measure(adapter: Adapter) -> dict[str, float]:
        set_adapter(loaded, adapter)
        values = evaluate(loaded, anchors, PassOptions.of(config.model, config.measuring))
        known = ~np.isnan(values)
        return {
            name: float(values[known & (domains == name)].mean())
            for name in sorted(set(domains[known].tolist()))
        }

    return measure
