"""Run a federation as its coordinator, and show its status: ``fedwinnow run`` and ``status``."""

import json
import logging
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from fedwinnow.cli.options import AsJson, Resume
from fedwinnow.cli.stopping import resumed_by, saying
from fedwinnow.server.report.record import RunRecord, read_record


def run(
    file: Annotated[Path, typer.Argument(help="TOML file of the deployed run.")],
    *,
    resume: Resume = False,
    as_json: AsJson = False,
) -> None:
    """Run over many sites through Flower; submit again whenever Flower ends the run too early."""
    from fedwinnow.curation.config.load_files import load_run  # noqa: PLC0415 - with the rest of this command

    config = load_run(file)  # a mistake is said before torch and Flower load
    from fedwinnow.server.deployment.supervise import supervise  # noqa: PLC0415 - torch loads here

    logging.getLogger("fedwinnow.server").setLevel(logging.INFO)
    with saying(resumed_by(Path(config.run.output) / config.run.name)):
        folder = supervise(file, config, resume=resume)
    if as_json:
        print((folder / "summary.json").read_text(encoding="utf-8"))
        return
    show_run(read_record(folder / "record.json"), folder)


def status(
    run: Annotated[Path, typer.Argument(help="A run folder, or its run.toml.")],
    *,
    as_json: AsJson = False,
) -> None:
    """Show a run's phase, deadline, members, who answered, who is missing and why, and bytes."""
    from fedwinnow.curation.config.load_files import load_run  # noqa: PLC0415 - with the rest of this command
    from fedwinnow.server.run.status import read_status  # noqa: PLC0415 - with the rest of this command

    folder = run
    if run.is_file():
        section = load_run(run).run
        folder = Path(section.output) / section.name
    found = read_status(folder)
    if as_json:
        print(json.dumps(found, indent=1, ensure_ascii=False))
        return
    _show(found)


def _show(found: Mapping[str, Any]) -> None:
    """Print what a run does, who is awaited until when, and who was missing before."""
    where = " ".join(str(part) for part in (found["phase"], found["round"], found["arm"]) if part)
    left = found["ends"] - time.time()
    words = f"{left:.0f} s are left" if left > 0 else f"passed {-left:.0f} s ago"
    ends = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(found["ends"]))
    print(f"run       {found['run']}, started {found['attempts']} times")
    if found["done"]:
        print("phase     done")
    elif found["stopped"]:
        print(f"phase     {where}, in which it stopped: {found['stopped']}")
        print("next      mend what it says, then fedwinnow run RUN.toml --resume")
    else:
        print(f"phase     {where}, deadline {ends} ({words})")
    now, place = found["answered"].values(), ("phase", "round", "arm")
    last = found["phases"][-1:]
    counted = any(all(one[key] == found[key] for key in place) for one in last)
    down, up = (
        found[key] + (0 if counted else sum(answer[key] for answer in now))
        for key in ("bytes_down", "bytes_up")
    )
    print(f"bytes     {down:,} down, {up:,} up so far")
    print(f"members   {len(now)} of {len(found['members'])} answered this phase")
    for site in sorted({*found["members"], *found["answered"], *found["missing"]}):
        print(f"  {site:20} {_said(found, site)}")
    absent = [
        (one["phase"], one["round"], site, why)
        for one in found["phases"]
        for site, why in one["missing"].items()
    ]
    if absent:
        print("missing before")
    for phase, number, site, why in absent:
        print(f"  {phase} {number or ''}".ljust(22), f"{site}: {why}")


def _said(found: Mapping[str, Any], site: str) -> str:
    """Return what a site has answered in the phase that goes on, in words."""
    answer, late = found["answered"].get(site), found["returning"].get(site)
    if site in found["missing"]:
        return f"missing: {found['missing'][site]}"
    if answer:
        return f"answered after {answer['seconds']:.1f} s, {answer['bytes_up']:,} bytes"
    if found["stopped"]:
        return "had not answered"
    return f"is back: caught up with {late}, is awaited" if late else "is awaited"


def show_run(record: RunRecord, folder: Path) -> None:
    """Print what was kept, how well, how the arms compare, and where the report lies."""
    from fedwinnow.server.run.advice import selection_warnings  # noqa: PLC0415 - numpy loads here

    console = Console(soft_wrap=False)
    console.print(_kept(record))
    if record.selection is not None:
        for table in _selection(record):
            console.print(table)
    if record.arms:
        console.print(_arms(record))
    for remark in record.remarks:
        console.print(remark, soft_wrap=True)
    for line in selection_warnings(
        record.scorer.name,
        record.forecast,
        record.threshold.evidence,
        kept_all=record.kept == record.samples,
    ):
        console.print(f"warning: {line}", style="yellow", markup=False, soft_wrap=True)
    console.print(f"report   {folder / 'report.html'}", soft_wrap=True)
    if record.adapter is not None:
        console.print(f"adapter  {folder / record.adapter.path}", soft_wrap=True)
    console.print(f"summary  {folder / 'summary.json'}", soft_wrap=True)


def _kept(record: RunRecord) -> Table:
    table = Table("silo", "samples", "kept", "share", title="Kept")
    recalls = {} if record.selection is None else record.selection.recall_by_site
    if recalls:
        table.add_column("clean recall")
    for site in record.sites:
        cells = [site.site, str(site.samples), str(site.kept), f"{site.share:.0%}"]
        table.add_row(*cells, *([_number(recalls.get(site.site))] if recalls else []))
    return table


def _selection(record: RunRecord) -> Iterator[Table]:
    """Yield a table of how well each scorer ranks, and another by kind of corruption."""
    rows = record.figures_by_scorer
    title = "Selection against the planted truth (comparison scorers keep the same number)"
    table = Table("scorer", "AUROC", "within silo", "precision", "recall", title=title)
    for name, one in rows.items():
        figures = (one.auroc, one.auroc_within, one.precision, one.recall)
        table.add_row(name, *map(_number, figures))
    yield table
    kinds = sorted(rows[record.scorer.name].auroc_by_corruption)
    table = Table("scorer", *kinds, title="AUROC by kind of corruption")
    for name, one in rows.items():
        table.add_row(name, *(_number(one.auroc_by_corruption.get(kind)) for kind in kinds))
    yield table


def _arms(record: RunRecord) -> Table:
    table = Table("arm", "kept", "steps", "evaluation loss", "arm − curated (95 %)", title="Arms")
    if record.initial_loss is not None:
        table.add_row("untrained", "0", "0", f"{record.initial_loss:.4f}", "")
    for name, arm in record.arms.items():
        apart = record.arm_differences.get(name)
        words = "" if apart is None else apart.words
        table.add_row(name, str(arm.kept), str(arm.steps), _number(arm.eval_loss, 4), words)
    return table


def _number(value: float | None, digits: int = 3) -> str:
    return "–" if value is None else f"{value:.{digits}f}"
