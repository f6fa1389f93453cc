"""Collect evidence over seeds, train a model for it: ``fedwinnow study``, ``attacks``, ``base``."""

from pathlib import Path
from typing import Annotated

import typer

from fedwinnow.cli.options import Set, require_sources, typed_command
from fedwinnow.cli.stopping import saying

GOES_ON = "finished runs and the last commit are kept; the same command goes on from them"
"""What a stopped study or recipe comparison leaves, in words."""


def study(
    name: Annotated[str, typer.Argument(help="demo, a study's name, or a scenario file.")] = "",
    seeds: Annotated[int, typer.Option(help="How many of the study's seeds.", min=1)] = 3,
    evidence: Annotated[Path, typer.Option(help="Folder for NAME.md, NAME.json, NAME.svg.")] = Path(
        "docs/evidence"
    ),
    settings: Set = None,
    *,
    signals: Annotated[
        bool, typer.Option("--signals", help="Also what each signal gains: NAME_signals.md.")
    ] = False,
) -> None:
    """Run a study over several seeds and write its evidence tables; without a name, list them."""
    from fedwinnow.curation.config.load_files import load_scenario  # noqa: PLC0415 - with the rest of this command
    from fedwinnow.simulations.studies.study_names import check_study_settings, names  # noqa: PLC0415 - with the rest of this command

    if name.endswith(".toml"):  # a mistake is said before torch loads
        require_sources(load_scenario(Path(name), settings or ()))
    elif name and not Path(name).is_file():
        check_study_settings(name, settings or ())
    from fedwinnow.simulations.studies.definitions import load_study, plan  # noqa: PLC0415 - torch loads here

    if not name:
        for known in names():
            found = load_study(known)
            print(f"{known}: {found.about} Splits: {', '.join(s.name for s in found.splits)}.")
        return
    planned = plan(name, seeds, tuple(settings or ()))
    from fedwinnow.cli.progress import ProgressDisplay  # noqa: PLC0415 - torch loads here
    from fedwinnow.client.runs.process_cache import ProcessCache  # noqa: PLC0415 - likewise
    from fedwinnow.simulations.studies import run_study as studies  # noqa: PLC0415 - likewise
    from fedwinnow.simulations.studies.ablation import ablate  # noqa: PLC0415 - likewise

    with saying(GOES_ON), ProgressDisplay() as watch:
        cache = ProcessCache(progress=watch.work)
        studies.run_study(
            planned,
            folder=evidence,
            command=typed_command(),
            progress=watch.delivery,
            cache=cache,
        )
        print((evidence / f"{planned.title}.md").read_text(encoding="utf-8"))
        if signals:
            print(ablate(planned, folder=evidence, command=typed_command(), cache=cache))


def base(
    out: Annotated[Path, typer.Argument(help="Folder of the model; must not be there yet.")],
    seed: Annotated[int, typer.Option(help="Seed of tokenizer, weights and tasks.")] = 0,
    steps: Annotated[int, typer.Option(help="Optimizer steps; 0: as for the studies.")] = 0,
) -> None:
    """Train the base model of the generated skills: less than two million weights, minutes."""
    from dataclasses import replace  # noqa: PLC0415 - with the rest of this command

    from fedwinnow.cli.progress import ProgressDisplay  # noqa: PLC0415 - torch loads here
    from fedwinnow.simulations.datasets.skills_base_model import BaseSection, write_base_model  # noqa: PLC0415 - torch loads here

    section = BaseSection(seed=seed)
    with ProgressDisplay(doing="train the base model"):
        write_base_model(out, replace(section, steps=steps) if steps else section)
    print((out / "base.json").read_text(encoding="utf-8"))


def attacks(
    attack: Annotated[
        list[str] | None, typer.Option("--attack", help="One of the zoo; often; none: all.")
    ] = None,
    seeds: Annotated[
        int, typer.Option(help="How many seeds, from 1; 0 chose the settings.", min=1)
    ] = 3,
    evidence: Annotated[Path, typer.Option(help="Folder for attacks.json and .md.")] = Path(
        "docs/evidence"
    ),
    settings: Set = None,
) -> None:
    """Try attacks of one site on generated skills and write a table; finished runs are kept."""
    from fedwinnow.cli.progress import ProgressDisplay  # noqa: PLC0415 - torch loads here
    from fedwinnow.simulations.attacks import run_attacks  # noqa: PLC0415 - torch loads here
    from fedwinnow.simulations.attacks.catalogue import ATTACKS  # noqa: PLC0415 - torch loads here

    plan = run_attacks.Plan(
        attacks=tuple(attack or ATTACKS),
        seeds=tuple(range(1, seeds + 1)),
        settings=tuple(settings or ()),
    )
    with saying(GOES_ON), ProgressDisplay() as watch:
        run_attacks.run_attacks(
            plan, folder=evidence, command=typed_command(), progress=watch.delivery
        )
    print((evidence / "attacks.md").read_text(encoding="utf-8"))
