"""Score one data set against public anchors, without a federation: ``fedwinnow score``."""

import json
import logging
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from fedwinnow.cli.options import AsJson, Set
from fedwinnow.cli.stopping import saying

if TYPE_CHECKING:
    from fedwinnow.simulations.single_silo import ScoreResult


def score(  # noqa: PLR0913, PLR0917 - one option per thing that a user may change
    data: Annotated[
        Path, typer.Argument(help="JSON, JSONL, CSV or Parquet file, or a folder of data.")
    ],
    anchors: Annotated[Path, typer.Option(help="Clean public samples, same columns.")],
    model: Annotated[str, typer.Option(help="Hub name or folder of the model.")],
    out: Annotated[Path, typer.Option(help="Parquet file to write.")] = Path("scores.parquet"),
    kept: Annotated[
        Path | None, typer.Option(help="File for the kept rows, unchanged: .jsonl, .csv, .parquet.")
    ] = None,
    scorer: Annotated[str, typer.Option(help="Scorer plug-in.")] = "calibrated",
    threshold: Annotated[str, typer.Option(help="Threshold plug-in.")] = "target_recall",
    trajectory: Annotated[
        str, typer.Option(help="none: forward passes only; global: warm up and use gradients.")
    ] = "none",
    settings: Set = None,
    *,
    as_json: AsJson = False,
) -> None:
    """Score and filter one data set against public anchors; no federation, no server."""
    from fedwinnow.simulations.score_settings import check_score_settings  # noqa: PLC0415 - with the rest of this command

    words = (f"scorer.name={scorer}", f"threshold.name={threshold}", f"run.trajectory={trajectory}")
    overrides = (*words, *(settings or ()))
    check_score_settings(data, anchors, model, overrides=overrides)  # before torch loads
    from fedwinnow.cli.progress import ProgressDisplay  # noqa: PLC0415 - torch loads here
    from fedwinnow.client.runs.process_cache import ProcessCache  # noqa: PLC0415 - torch loads here
    from fedwinnow.simulations.single_silo import score_config, score_silo  # noqa: PLC0415 - torch loads here

    config = score_config(data, anchors, model, overrides=overrides)
    logging.getLogger("fedwinnow.simulations.single_silo").setLevel(logging.INFO)  # a line a source
    with saying(f"{out} was not written; run the command again"), ProgressDisplay() as watch:
        found = score_silo(
            config, out, kept=kept, progress=watch.delivery, cache=ProcessCache(progress=watch.work)
        )
    for line in found.warnings:
        Console(stderr=True).print(
            f"warning: {line}", style="yellow", markup=False, highlight=False, soft_wrap=True
        )
    if as_json:
        told = {"out": str(out), **{f.name: getattr(found, f.name) for f in fields(found)}}
        print(json.dumps(told, indent=1))
    else:
        _show(found, out)


def _show(found: "ScoreResult", out: Path) -> None:
    print(f"{found.kept} of {found.samples} samples kept; table in {out}")
    if (auroc := found.forecast.get("auroc")) is not None:
        print(f"forecast AUROC on the corrupted anchors: {auroc:.3f}")
