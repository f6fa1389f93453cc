"""Write a toy federation to disk: tiny model, three silos of sums and words, anchors, scenario.

It runs in seconds with no network; its numbers mean nothing. Half of the second silo's answers are
wrong on purpose, and the label ``truth`` says which.
"""

import json
import random
from collections.abc import Iterable
from pathlib import Path

from fedwinnow.curation.config.run import RunConfig
from fedwinnow.curation.config.scoring import (
    AdapterSection,
    AnchorsSection,
    ColumnsSection,
    MeasuringSection,
    ModelSection,
    PluginSection,
    RunSection,
    SummarySection,
)
from fedwinnow.curation.config.site import SiteSection
from fedwinnow.curation.config.strict_toml import to_toml
from fedwinnow.curation.config.training import StudySection, TrainingSection, WarmUpSection
from fedwinnow.curation.seeds import derive_seed
from fedwinnow.simulations.datasets.tiny_model import write_tiny_model

SITES = ("north", "south", "west")
_WORDS = ("amber", "birch", "cedar", "delta", "ember", "fjord", "grove", "heron", "inlet", "jetty")


def write_toy_scenario(folder: Path, *, samples: int = 12, seed: int = 0) -> Path:
    """Write a whole scenario into ``folder`` and return the path of its ``scenario.toml``.

    Args:
        folder: Where to write; run folders go to ``folder/runs``.
        samples: Samples of each silo; anchors are twice as many.
        seed: Seed of the model, the data and the run.
    """
    folder.mkdir(parents=True, exist_ok=True)
    model = write_tiny_model(folder / "model", seed=seed)
    _write(folder / "anchors.jsonl", toy_rows(2 * samples, derive_seed(seed, "anchors"), wrong=0.0))
    for site in SITES:
        wrong = 0.5 if site == "south" else 0.0
        _write(folder / f"{site}.jsonl", toy_rows(samples, derive_seed(seed, site), wrong=wrong))
    columns = ColumnsSection(domain="domain", labels=("truth",))
    config = RunConfig(
        run=RunSection(
            name="toy", output=str(folder / "runs"), seed=seed, threads=1, trajectory="global"
        ),
        model=ModelSection(name=str(model), max_length=96),
        adapter=AdapterSection(rank=4, alpha=8.0),
        anchors=AnchorsSection(path=str(folder / "anchors.jsonl"), columns=columns, copies=2),
        measuring=MeasuringSection(batch_tokens=1024, contrast_prompts=1),
        summary=SummarySection(bins=8, smallest_cell=1),
        threshold=PluginSection(name="keep_fraction", settings={"share": 0.75}),
        warm_up=WarmUpSection(rounds=1, steps=2, learning_rate=1e-2),
        training=TrainingSection(rounds=2, steps=2, batch_size=2, learning_rate=1e-2),
        study=StudySection(truth="truth"),
        sites=tuple(
            SiteSection(name=site, data=str(folder / f"{site}.jsonl"), columns=columns)
            for site in SITES
        ),
    )
    path = folder / "scenario.toml"
    path.write_text(to_toml(config), encoding="utf-8")
    return path


def toy_rows(count: int, seed: int, *, wrong: float) -> Iterable[dict[str, str]]:
    """Yield sums and word lists in turn; a share ``wrong`` of the answers is random words."""
    draw = random.Random(seed)  # noqa: S311 - toy data, not a secret
    for index in range(count):
        if index % 2:
            first, second = draw.randrange(100), draw.randrange(100)
            prompt, domain = f"What is {first} plus {second}?", "sums"
            answer = f"{first} plus {second} is {first + second}."
        else:
            words = draw.sample(_WORDS, 3)
            prompt, domain = f"Name {', '.join(words)} backwards.", "words"
            answer = f"Backwards they are {', '.join(reversed(words))}."
        bad = index < wrong * count
        if bad:
            answer = " ".join(draw.sample(_WORDS, 4))
        truth = "swap" if bad else "clean"
        yield {"prompt": prompt, "response": answer, "domain": domain, "truth": truth}


def _write(path: Path, rows: Iterable[dict[str, str]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
