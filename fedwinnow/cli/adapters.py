"""Merge and compare PEFT adapters on disk: ``fedwinnow merge``, ``diff`` and ``remerge``."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from fedwinnow.cli.options import AsJson, require_folders
from fedwinnow.curation.errors import ConfigError, IncompatibleAdapterError, ModelError

if TYPE_CHECKING:
    from fedwinnow.curation.adapters.comparison import Comparison
    from fedwinnow.curation.adapters.peft_reader import StoredAdapter
    from fedwinnow.server.adapter_tools.folder_checks import FolderMerge

Folders = Annotated[list[Path], typer.Argument(help="PEFT adapter folders of one base model.")]


def merge(
    folders: Folders,
    out: Annotated[Path, typer.Option("--out", help="New folder for the merged adapter.")],
    rule: Annotated[
        str, typer.Option(help="A merging rule: fedwinnow plugins --kind merging.")
    ] = "core_svd",
    weight: Annotated[
        list[float] | None,
        typer.Option(help="Weight of each folder, in their order; brought to sum 1. None: equal."),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", help="A setting of the rule: key=value; may be given often."),
    ] = None,
    base: Annotated[
        str,
        typer.Option(
            help="Name of the base model, where the folders differ in it; its local folder, where "
            "they name its modules differently."
        ),
    ] = "",
    *,
    as_json: AsJson = False,
) -> None:
    """Merge PEFT adapters of any rank and scale into one that PEFT loads; nothing is trained."""
    require_folders(*folders)
    from fedwinnow.curation.config.strict_toml import with_overrides  # noqa: PLC0415 - with the rest of this command
    from fedwinnow.server.adapter_tools.merge_folders import merge_folders  # noqa: PLC0415 - torch loads here

    given = with_overrides({}, settings or (), form="key=value")
    found = merge_folders(folders, out, rule=rule, settings=given, weights=weight or (), base=base)
    if as_json:
        print(json.dumps(asdict(found), indent=1, ensure_ascii=False))
    else:
        _show_merge(found)


def diff(
    folders: Annotated[list[Path], typer.Argument(help="Two PEFT LoRA folders of one base model.")],
    rank: Annotated[
        int, typer.Option(min=0, help="Rank of the common space; 0: the larger of the two.")
    ] = 0,
    picture: Annotated[
        Path | None, typer.Option(help="Draw layers by modules into this SVG file.")
    ] = None,
    base: Annotated[
        str,
        typer.Option(help="Local folder of the base model, where its modules have two names."),
    ] = "",
    *,
    as_json: AsJson = False,
) -> None:
    """Compare two PEFT adapters: norms, angles, and the energy outside a common rank, by layer."""
    if len(folders) != 2:  # noqa: PLR2004 - a difference has two sides
        message = f"diff: expected two adapter folders, got {len(folders)}; give A and B"
        raise ConfigError(message)
    if picture is not None and picture.suffix != ".svg":
        message = f"--picture {picture}: expected a name that ends with .svg"
        raise ConfigError(message)
    require_folders(*folders)
    from fedwinnow.curation.adapters.comparison import compare  # noqa: PLC0415 - torch loads here
    from fedwinnow.curation.adapters.module_names import common_spelling  # noqa: PLC0415 - torch loads here
    from fedwinnow.curation.adapters.peft_reader import check_finite, open_adapter  # noqa: PLC0415 - torch loads here
    from fedwinnow.server.adapter_tools.folder_checks import check_copies  # noqa: PLC0415 - torch loads here

    opened = [open_adapter(folder, base="base") for folder in folders]
    (first, second), renamed = common_spelling(opened, base)
    for one in (first, second):
        check_finite(one)
    check_copies({str(one.folder): one for one in (first, second)})
    _warn_of_bases(first, second)
    _tell_of_names(renamed)
    try:
        found = compare(first.adapter, second.adapter, rank=rank)
    except IncompatibleAdapterError as error:
        message = f"{folders[0]} and {folders[1]}: {error}"
        raise ModelError(message) from error
    if picture is not None:
        from fedwinnow.curation.atomic_files import write_atomically  # noqa: PLC0415 - with the picture
        from fedwinnow.server.adapter_tools.heat_maps import heat_maps  # noqa: PLC0415 - matplotlib loads here

        write_atomically(picture, heat_maps(found, title=f"{folders[0]} and {folders[1]}").encode())
    if as_json:
        print(json.dumps(asdict(found), indent=1, ensure_ascii=False, allow_nan=False))
    else:
        _show_difference(found, folders)


def remerge(
    run: Annotated[
        Path, typer.Argument(help="Folder of a finished run with keep.adapters = true.")
    ],
    without: Annotated[
        list[str], typer.Option("--without", help="A site that leaves; repeatable.")
    ],
    out: Annotated[
        Path | None, typer.Option("--out", help="New folder; RUN/adapter-without-SITE by default.")
    ] = None,
) -> None:
    """Merge a run's kept adapters again without a site that opts out; nobody trains."""
    require_folders(run)
    from fedwinnow.server.adapter_tools.remerge import (  # noqa: PLC0415 - torch loads here
        read_configuration,
        write_remerged,
    )
    from fedwinnow.server.adapter_tools.remerge import remerge as merge_anew  # noqa: PLC0415 - torch loads here

    found = merge_anew(run, without)
    target = out or run / ("adapter-without-" + "-".join(found.without))
    write_remerged(found, target, read_configuration(run))
    words = "no update of theirs remains"
    if not found.exact:
        words = (
            f"their own updates of {found.rounds} rounds are gone; what the others computed in "
            "later rounds from adapters with their share in them stays"
        )
    print(f"{target}: merged without {', '.join(found.without)}; {words}")


def _warn_of_bases(*opened: "StoredAdapter") -> None:
    """Say on stderr where two folders name different base models; one base may have two names."""
    named = [str(one.config.get("base_model_name_or_path") or "none") for one in opened]
    if len(set(named)) > 1:
        words = "; ".join(f"{one.folder}: {name}" for one, name in zip(opened, named, strict=True))
        Console(stderr=True).print(
            f"warning: the folders name different base models ({words}); unless these are two "
            "names of one model, norms and angles say nothing",
            style="yellow", markup=False, highlight=False, soft_wrap=True,
        )  # fmt: skip


def _tell_of_names(renamed: Mapping[str, str]) -> None:
    """Say on stderr whose module names were changed to those of the base's files."""
    for folder, change in renamed.items():
        words = f"{folder}: module names changed to those of the base's files, such as {change}"
        Console(stderr=True).print(words, markup=False, highlight=False, soft_wrap=True)


def _show_merge(found: "FolderMerge") -> None:
    table = Table("adapter", "weight", "‖ΔW‖", "rank", "modules", title=f"Merged by {found.rule}")
    for part in found.parts:
        cells = (f"{part.weight:.4f}", f"{part.norm:.4g}", _span(part.ranks), str(part.modules))
        table.add_row(part.folder, *cells)
    table.add_section()
    table.add_row("weighted sum ΔW*", "1", f"{found.target_norm:.4g}", "", "")
    result = (f"{found.norm:.4g}", _span(found.ranks), str(found.modules))
    table.add_row(found.out, "", *result)
    console = Console()
    console.print(table)
    costs = Table("what the merge cost", "", show_header=False)
    if found.error is not None:
        costs.add_row("distance from the weighted sum, ‖ΔW − ΔW*‖ / ‖ΔW*‖", f"{found.error:.3g}")
    for name, value in sorted(found.report.items()):
        costs.add_row(name, f"{value:.4g}")
    if found.saved:
        costs.add_row("modules_to_save, averaged with the same weights", ", ".join(found.saved))
    if found.copied:
        costs.add_row("the base's own weights beside factors, copied", ", ".join(found.copied))
    console.print(costs)
    _tell_of_names(found.renamed)
    console.print(f"adapter  {found.out}", soft_wrap=True, markup=False, highlight=False)


def _show_difference(found: "Comparison", folders: Sequence[Path]) -> None:
    from fedwinnow.curation.adapters.comparison import layer_sort_key, module_place  # noqa: PLC0415 - loaded before

    head = ("A", "B", "angle", "outputs", "inputs", "outside", "discarded")
    table = Table(
        "layer",
        title="Norms; angles in degrees; energies as shares",
        box=SIMPLE_HEAD,  # a line of a terminal with 80 columns holds it
        padding=(0, 1, 0, 0),
        pad_edge=False,
    )
    table.add_column("module", overflow="fold")
    for word in head:
        table.add_column(word, justify="right", no_wrap=True)
    for name in sorted(found.modules, key=layer_sort_key):
        one = found.modules[name]
        table.add_row(
            *module_place(name),
            *(f"{norm:.4g}" for norm in one.norms),
            _number(one.angle),
            _number(one.output_angles[-1] if one.output_angles else None),
            _number(one.input_angles[-1] if one.input_angles else None),
            _number(one.outside, 4),
            _number(one.discarded, 4),
        )
    for side, alone in enumerate(found.alone):
        for name, norm in sorted(alone.items(), key=lambda pair: layer_sort_key(pair[0])):
            table.add_row(
                *module_place(name), *(f"{norm:.4g}" if s == side else "–" for s in (0, 1))
            )
    table.add_section()
    table.add_row("all", "", *(f"{norm:.4g}" for norm in found.norms), _number(found.angle))
    console = Console()
    console.print(table)
    for letter, folder in zip("AB", folders, strict=True):
        console.print(f"{letter}  {folder}", soft_wrap=True, markup=False, highlight=False)
    console.print(
        "A, B: ‖ΔW‖; angle: between the products; outputs, inputs: largest principal angle of the "
        "spaces; outside: energy that no common output space of the rank holds; discarded: what "
        "a merge to that rank with equal weights loses"
    )


def _span(ranks: tuple[int, int]) -> str:
    return str(ranks[0]) if ranks[0] == ranks[1] else f"{ranks[0]}–{ranks[1]}"


def _number(value: float | None, digits: int = 2) -> str:
    return "–" if value is None else f"{value:.{digits}f}"
