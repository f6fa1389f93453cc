"""List plug-ins as their code describes them, and check one by its laws: ``fedwinnow plugins``."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from fedwinnow.cli.options import AsJson
from fedwinnow.curation.errors import PluginError, RunError

app = typer.Typer(help="List every plug-in; check one by its laws.")

OfKind = Annotated[
    str,
    typer.Option(
        "--kind", help="scorer, threshold, ordering, objective, weighting or merging only."
    ),
]


@app.callback(invoke_without_command=True)
def plugins(context: typer.Context, kind: OfKind = "", *, as_json: AsJson = False) -> None:
    """List every plug-in: settings with units and defaults, paper, and package; or check one."""
    if context.invoked_subcommand:
        return
    rows = plugin_rows(kind)
    if as_json:
        print(json.dumps(rows, indent=1, ensure_ascii=False))
    else:
        show_plugins(rows)


@app.command()
def check(
    name: Annotated[str, typer.Argument(help="Name of a plug-in, such as core_svd.")],
    kind: OfKind = "",
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", help="A setting of the plug-in: key=value; may be given often."),
    ] = None,
    *,
    strict: Annotated[
        bool, typer.Option("--strict", help="What is only usual of its kind must hold too.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Check a plug-in against its Protocol's laws on made-up inputs; exit code 1 if one fails."""
    from fedwinnow.curation.config.strict_toml import with_overrides  # noqa: PLC0415 - with the rest of this command
    from fedwinnow.strategies.registry import plugin_source  # noqa: PLC0415 - numpy loads here

    given = with_overrides({}, settings or ())
    of_kind = _only_kind(kind, name)
    plugin_source(of_kind, name)  # an unknown name is said before torch loads
    from fedwinnow.strategies.conformance.check import check_registered  # noqa: PLC0415 - torch loads here

    verdicts = check_registered(of_kind, name, given)
    if as_json:
        print(json.dumps([asdict(one) for one in verdicts], indent=1, ensure_ascii=False))
    else:
        table = Table("law", "", title=f"Laws of {name}")
        for one in verdicts:
            word = "holds" if one.holds else ("broken" if one.required else "does not hold")
            told = f"{word}: {one.found}" if one.found else word
            table.add_row(
                one.law, told, style=None if one.holds else _colour(required=one.required)
            )
        Console().print(table)
    broken = [one for one in verdicts if not one.holds and (one.required or strict)]
    if broken:
        message = f"{name}: {len(broken)} of {len(verdicts)} laws fail, first: {broken[0].law}"
        raise RunError(message)


def plugin_rows(kind: str = "") -> list[dict[str, Any]]:
    """Return every plug-in as plain data, in the order of kinds and names.

    Raises:
        PluginError: no kind has this name.
    """
    from fedwinnow.strategies.plugin_description import describe_all  # noqa: PLC0415 - with the rest of this command

    rows = []
    for found in describe_all(_a_kind(kind) if kind else None):
        row = asdict(found)
        for setting in row["settings"]:
            if setting["required"]:
                setting["default"] = None
        rows.append(row)
    return rows


def show_plugins(rows: Sequence[dict[str, Any]]) -> None:
    """Print the plug-ins, one table a kind."""
    console = Console()
    for kind in dict.fromkeys(row["kind"] for row in rows):
        table = Table("name", title=f"{kind} plug-ins", show_lines=True)
        table.add_column("what it is, settings with units and defaults, source", overflow="fold")
        for row in rows:
            if row["kind"] == kind:
                table.add_row(escape(row["name"]), escape("\n".join(_lines(row))))
        console.print(table)


def _lines(row: dict[str, Any]) -> list[str]:
    if row["broken"]:
        return [f"BROKEN: {row['broken']}", f"from {row['package']}"]
    lines = [row["about"]] if row["about"] else []
    for one in row["settings"]:
        value = "required" if one["required"] else f"= {one['default']!r}"
        lines.append(f"  {one['name']} {value}" + (f": {one['about']}" if one["about"] else ""))
    lines.append(row["paper"])
    return lines if row["package"] == "fedwinnow" else [*lines, f"from {row['package']}"]


def _a_kind(kind: str) -> Any:  # noqa: ANN401 - a Kind, which loads with the registry
    """The kind, if there is one of this name."""
    from fedwinnow.strategies.registry import KINDS  # noqa: PLC0415 - numpy loads here

    if kind not in KINDS:
        message = f"--kind {kind!r} is unknown; choose one of {', '.join(KINDS)}"
        raise PluginError(message)
    return kind


def _only_kind(kind: str, name: str) -> Any:  # noqa: ANN401 - see _a_kind
    """Return the given kind, or else the only kind that has the name."""
    from fedwinnow.strategies.registry import KINDS, PREFIXED, plugin_names  # noqa: PLC0415 - numpy loads here

    if kind:
        return _a_kind(kind)
    prefix = name.partition(":")[0]
    having = [one for one in KINDS if name in plugin_names(one) or (one, prefix) in PREFIXED]
    if len(having) != 1:
        what = "no kind has it" if not having else f"{' and '.join(having)} have it"
        message = f"plug-in {name!r}: {what}; give --kind, or see fedwinnow plugins"
        raise PluginError(message)
    return having[0]


def _colour(*, required: bool) -> str:
    return "red" if required else "yellow"
