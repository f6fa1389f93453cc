"""The tables that the command line prints."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

Tree = dict[str, Any]


def show_run(record: Tree, folder: Path) -> None:
    """Print what was kept, how well, how the arms compare, and where the report lies."""
    console = Console(soft_wrap=False)
    console.print(_kept(record))
    if record["selection"]:
        for table in _selection(record):
            console.print(table)
    if record["arms"]:
        console.print(_arms(record))
    for remark in record.get("remarks", ()):
        console.print(remark, soft_wrap=True)
    evidence = record["threshold"]["evidence"]
    if evidence.get("inseparable"):
        console.print("The anchors cannot be told from their corruptions: everything is kept.")
    console.print(f"report   {folder / 'report.html'}", soft_wrap=True)
    if record["adapter"]:
        console.print(f"adapter  {folder / record['adapter']['path']}", soft_wrap=True)
    console.print(f"summary  {folder / 'summary.json'}", soft_wrap=True)


def _kept(record: Tree) -> Table:
    table = Table("silo", "samples", "kept", "share", title="Kept")
    recalls = (record["selection"] or {}).get("recall_by_site", {})
    if recalls:
        table.add_column("clean recall")
    for site in record["sites"]:
        share = site["kept"] / site["samples"] if site["samples"] else 0.0
        cells = [site["site"], str(site["samples"]), str(site["kept"]), f"{share:.0%}"]
        table.add_row(*cells, *([_number(recalls.get(site["site"]))] if recalls else []))
    return table


def _selection(record: Tree) -> Iterator[Table]:
    """How well each scorer ranks, and, in a table of its own, how well by kind of corruption."""
    selection = record["selection"]
    rows = {record["scorer"]["name"]: selection, **selection["comparison"]}
    title = "Selection against the planted truth (comparison scorers keep the same number)"
    table = Table("scorer", "AUROC", "within silo", "precision", "recall", title=title)
    for name, figures in rows.items():
        keys = ("auroc", "auroc_within", "precision", "recall")
        table.add_row(name, *(_number(figures[key]) for key in keys))
    yield table
    kinds = sorted(selection["auroc_by_corruption"])
    table = Table("scorer", *kinds, title="AUROC by kind of corruption")
    for name, figures in rows.items():
        found = figures["auroc_by_corruption"]
        table.add_row(name, *(_number(found.get(kind)) for kind in kinds))
    yield table


def _arms(record: Tree) -> Table:
    table = Table("arm", "kept", "steps", "evaluation loss", "arm − curated (95 %)", title="Arms")
    if record["initial_loss"] is not None:
        table.add_row("untrained", "0", "0", f"{record['initial_loss']:.4f}", "")
    for arm, result in record["arms"].items():
        apart = record["arm_differences"].get(arm)
        text = (
            ""
            if apart is None
            else f"{apart['mean']:+.4f} [{apart['low']:+.4f}, {apart['high']:+.4f}]"
        )
        table.add_row(
            arm, str(result["kept"]), str(result["steps"]), _number(result["eval_loss"], 4), text
        )
    return table


def _number(value: float | None, digits: int = 3) -> str:
    return "–" if value is None else f"{value:.{digits}f}"
