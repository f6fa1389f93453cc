"""Render a run's record as ``report.html``: one self-contained page; no script, no request.

The page is a list of sections, each a list of blocks: texts, tables, and figures with captions that
say what to see. A part that the record does not hold is left out.
"""

from importlib.resources import files
from pathlib import Path

import jinja2

from fedwinnow.curation.atomic_files import write_atomically
from fedwinnow.server.report.blocks import number
from fedwinnow.server.report.record import RunRecord
from fedwinnow.server.report.selection_sections import SECTIONS


def render(record: RunRecord) -> str:
    """Return the report as HTML text."""
    folder = files("fedwinnow.server.report.templates")
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    template = environment.from_string((folder / "report.html").read_text(encoding="utf-8"))
    sections = [section for make in SECTIONS if (section := make(record)) is not None]
    return template.render(
        css=(folder / "report.css").read_text(encoding="utf-8"),
        run=record.run,
        verdict=_verdict(record),
        created=record.created,
        seed=record.seed,
        seconds=f"{record.seconds:.0f}",
        command=record.command,
        tiles=_tiles(record),
        sections=sections,
    )


def write_report(record: RunRecord, path: Path) -> None:
    """Write the report whole or not at all.

    Raises:
        OutputError: the file cannot be written.
    """
    write_atomically(path, render(record).encode())


def _verdict(record: RunRecord) -> str:
    """Say in a few plain sentences what was kept, and whether it helped."""
    silos = len(record.sites)
    share = f"{record.kept} of {record.samples} samples"
    words = [f"{silos} silos agreed on one threshold and kept {share}."]
    if record.threshold.cuts:
        words = [f"{silos} silos kept {share}, each by its own threshold."]
    if silos == 1:
        words = [f"One silo kept {share}."]
    difference = record.arm_differences.get("keep_all")
    if difference and (difference.low, difference.high) != (0.0, 0.0):
        better = "lower" if difference.mean > 0 else "higher"
        nats = f"{abs(difference.mean):.4f} nats per token"
        if difference.low > 0 or difference.high < 0:
            words.append(
                f"Training on them ends at a {better} evaluation loss than training on everything, "
                f"by {nats} (the 95% interval excludes 0)."
            )
        else:
            items = len(record.arms["keep_all"].losses)
            words.append(
                f"Training on them ends {nats} {better} in evaluation loss than training on "
                f"everything; {items} public answers cannot tell that from no difference (the 95% "
                "interval includes 0)."
            )
    if record.threshold.evidence.get("inseparable"):
        words.append(
            "The anchors could not be told from their corruptions, so nothing was dropped."
        )
    return " ".join(words)


def _tiles(record: RunRecord) -> list[dict[str, str]]:
    selection, threshold = record.selection, record.threshold
    cut = "keep all" if threshold.cut is None else f"{threshold.cut:.3g}"
    own = threshold.cuts
    if own:
        cut = f"{min(own.values()):.3g} … {max(own.values()):.3g}"
    tiles = [
        (f"{record.kept}", "samples kept"),
        (cut, "thresholds" if own else "threshold"),
        (number(selection.auroc if selection else None), "AUROC against planted truth"),
        (number(record.forecast.get("auroc")), "AUROC forecast on public anchors"),
        (number(selection.precision if selection else None), "precision"),
        (number(selection.recall if selection else None), "recall of clean samples"),
    ]
    return [{"value": value, "label": label} for value, label in tiles if value != "–"]
