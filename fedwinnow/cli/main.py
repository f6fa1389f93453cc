"""Define the command line; groups of commands lie in files of their own beside this one.

Exit codes: 0 done, 1 the run failed, 2 the input is wrong, 128 + N ended by signal N. Progress goes
to standard error, results to standard output, as JSON with ``--json``.
"""

import inspect
import json
import logging
import os
import sys
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape

from fedwinnow.cli import adapters, bench, plugins, recipes, score, site, studies
from fedwinnow.cli import run as cli_run
from fedwinnow.cli.options import AsJson, Resume, Set, require_sources, typed_command
from fedwinnow.cli.stopping import StoppedError, resumed_by, saying, stopping_on_signals
from fedwinnow.curation.errors import CurationError, DataError
from fedwinnow.server.report.record import read_record

app = typer.Typer(
    name="fedwinnow",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Federated curation for language models: one quality standard, no shared sample.",
)

app.add_typer(bench.app, name="bench")
app.add_typer(recipes.app, name="recipes")
app.add_typer(plugins.app, name="plugins")
app.add_typer(site.app, name="site")
app.command()(adapters.diff)
app.command()(adapters.merge)
app.command()(adapters.remerge)
app.command()(recipes.mixture)
app.command()(recipes.budget)
app.command()(site.keys)
app.command()(cli_run.run)
app.command()(cli_run.status)
app.command()(score.score)
app.command()(studies.study)
app.command()(studies.base)
app.command()(studies.attacks)


def _version(value: bool) -> None:  # noqa: FBT001 - typer's shape
    if value:
        try:
            print(f"fedwinnow {metadata.version('fedwinnow')}")
        except metadata.PackageNotFoundError:
            print("fedwinnow (a source tree, not installed)")
        raise typer.Exit


@app.callback()
def options(
    *,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Federated curation for language models: one quality standard, no shared sample."""


def command_line() -> Any:  # noqa: ANN401 - click's command, which typer may bring along
    """Return the whole command line, whose help texts keep words in brackets like [threshold]."""
    tree = typer.main.get_command(app)
    waiting: list[Any] = [tree]
    while waiting:
        command = waiting.pop()
        waiting += getattr(command, "commands", {}).values()
        for one in (command, *command.params):
            if getattr(one, "help", None):
                one.help = escape(inspect.cleandoc(one.help))
    return tree


def main() -> None:
    """Run the command line; entry point of the console script."""
    offline()
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    with stopping_on_signals():
        try:
            command_line()()
        except CurationError as error:
            Console(stderr=True).print(
                f"error: {error}", style="red", markup=False, highlight=False, soft_wrap=True
            )
            sys.exit(error.exit_code)
        except StoppedError as error:
            words = f"; {error.saved}" if error.saved else ""
            print(f"stopped by {error.signal}{words}", file=sys.stderr)
            raise


def offline() -> None:
    """Keep libraries from calling home; a hub is asked only for a name that is no local path."""
    for name in (
        "HF_HUB_DISABLE_TELEMETRY",
        "HF_HUB_DISABLE_PROGRESS_BARS",
        "RAY_USAGE_STATS_DISABLED",
    ):
        os.environ.setdefault(name, "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if not sys.stderr.isatty():  # bars of other libraries would fill a log with carriage returns
        os.environ.setdefault("TQDM_DISABLE", "1")


@app.command()
def demo(
    seed: Annotated[int, typer.Option(help="Seed of data, corruption, model and order.")] = 0,
    output: Annotated[Path, typer.Option(help="Folder that holds the run folder.")] = Path("runs"),
    settings: Set = None,
    *,
    resume: Resume = False,
    as_json: AsJson = False,
) -> None:
    """Run the main job on a real small model and real text: three silos, about 10 minutes."""
    from fedwinnow.simulations.datasets.demo_scenario import BUDGET, demo_settings  # noqa: PLC0415 - with the rest of this command

    overrides = (f"run.output={json.dumps(str(output))}", *(settings or ()))
    demo_settings(seed, overrides=overrides)  # a mistake is said before torch loads
    from fedwinnow.simulations.datasets.demo import demo_config  # noqa: PLC0415 - torch loads here

    _simulate(demo_config(seed, overrides=overrides), resume=resume, as_json=as_json, budget=BUDGET)


@app.command()
def simulate(
    scenario: Annotated[Path, typer.Argument(help="TOML file of the whole federation.")],
    settings: Set = None,
    runtime: Annotated[
        str, typer.Option(help="in-process, or flower for Flower's simulation runtime.")
    ] = "in-process",
    *,
    resume: Resume = False,
    as_json: AsJson = False,
) -> None:
    """Run a whole federation on this machine."""
    from fedwinnow.curation.config.load_files import load_scenario  # noqa: PLC0415 - only this command reads scenarios
    from fedwinnow.curation.errors import ConfigError  # noqa: PLC0415 - with the rest of this command
    from fedwinnow.simulations.datasets.demo_scenario import local_model  # noqa: PLC0415 - with the rest of this command

    if runtime not in {"in-process", "flower"}:
        message = f"--runtime {runtime!r} is unknown; choose in-process or flower"
        raise ConfigError(message)
    config = load_scenario(scenario, settings or ())
    config = replace(config, model=local_model(config.model))
    require_sources(config)
    if runtime == "flower":
        from fedwinnow.simulations.runtimes.flower import simulate_with_flower  # noqa: PLC0415 - Flower loads here

        logging.getLogger("fedwinnow.simulations.runtimes.flower").setLevel(
            logging.INFO
        )  # a line a phase
        with saying(resumed_by(Path(config.run.output) / config.run.name)):
            folder = simulate_with_flower(config, resume=resume, command=typed_command())
        _show(folder, as_json=as_json)
    else:
        _simulate(config, resume=resume, as_json=as_json, budget={})


@app.command()
def init(
    data: Annotated[
        Path | None,
        typer.Argument(
            help="Your data: JSON, JSONL, CSV, Parquet or a folder; none for run.toml alone."
        ),
    ] = None,
    anchors: Annotated[
        str, typer.Option(help="Clean public samples, same columns.")
    ] = "anchors.jsonl",
    model: Annotated[
        str, typer.Option(help="Hub name or folder of the model.")
    ] = "HuggingFaceTB/SmolLM2-135M-Instruct",
    out: Annotated[Path, typer.Option(help="Folder for the files.")] = Path(),
) -> None:
    """Write a commented scenario.toml for your own data; site.toml and run.toml to deploy it."""
    from fedwinnow.client.data_files.sources import local_path  # noqa: PLC0415 - only this command needs it

    if data is not None and not local_path(str(data)).exists():
        message = f"{data}: no such file or folder; give the path of your data"
        raise DataError(message)
    from fedwinnow.cli.init import (  # noqa: PLC0415 - datasets loads here
        write_run,
        write_scenario,
    )

    if data is None:
        print(f"wrote {write_run(model, out)}; edit it as its first lines say")
        return
    logging.getLogger("fedwinnow.cli.init").setLevel(logging.INFO)  # a line a source
    for path in write_scenario(data, anchors, model, out):
        print(f"wrote {path}")
    print(f"next: fedwinnow simulate {out / 'scenario.toml'}")
    print("or, over several machines: edit site.toml and run.toml as their first lines say")


@app.command()
def report(
    run: Annotated[Path, typer.Argument(help="A run folder with record.json.")],
) -> None:
    """Draw a finished run's report anew."""
    record = read_record(run / "record.json")
    from fedwinnow.server.report.page import write_report  # noqa: PLC0415 - matplotlib loads here

    write_report(record, run / "report.html")
    print(run / "report.html")


def _simulate(config: Any, *, resume: bool, as_json: bool, budget: Any) -> None:  # noqa: ANN401 - typed where torch may load
    from fedwinnow.cli.progress import ProgressDisplay  # noqa: PLC0415 - torch loads here
    from fedwinnow.client.runs.process_cache import ProcessCache  # noqa: PLC0415 - torch loads here
    from fedwinnow.simulations.runtimes.in_process import simulate as run  # noqa: PLC0415 - torch loads here

    saved = resumed_by(Path(config.run.output) / config.run.name)
    with saying(saved), ProgressDisplay(budget=budget) as watch:
        folder = run(
            config,
            resume=resume,
            progress=watch.delivery,
            command=typed_command(),
            cache=ProcessCache(progress=watch.work),
        )
    for line in watch.over_budget():
        Console(stderr=True).print(f"over its time budget: {line}", style="yellow")
    _show(folder, as_json=as_json)


def _show(folder: Path, *, as_json: bool) -> None:
    from fedwinnow.cli.run import show_run  # noqa: PLC0415 - rich only where it prints

    if as_json:
        print((folder / "summary.json").read_text(encoding="utf-8"))
        return
    show_run(read_record(folder / "record.json"), folder)


if __name__ == "__main__":
    main()
