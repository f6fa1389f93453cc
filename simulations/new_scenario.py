"""``fedwinnow init``: a commented scenario and a ``site.toml`` for the user's own data."""

import ast
import inspect
import typing
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path

from fedwinnow.client.data import columns_of
from fedwinnow.curation import config as words
from fedwinnow.curation import sections, server_sections, site_sections
from fedwinnow.curation.config import (
    AnchorsSection,
    ColumnsSection,
    ModelSection,
    RunConfig,
    RunSection,
    SiteConfig,
    SiteSection,
)
from fedwinnow.curation.errors import DataError, OutputError
from fedwinnow.curation.files import write
from fedwinnow.curation.settings import to_toml

PROMPTS = ("prompt", "instruction", "question", "input")
RESPONSES = ("response", "output", "answer", "completion")
CHATS = ("messages", "conversations", "conversation")


def write_scenario(data: Path, anchors: str, model: str, folder: Path) -> tuple[Path, Path]:
    """Write ``scenario.toml`` and ``site.toml`` with the data's columns mapped.

    Raises:
        DataError: the data cannot be read, or no known column names are among its columns.
        OutputError: a file is already there, or the folder cannot be written.
    """
    columns = guess_columns(columns_of(str(data)), str(data))
    site = SiteSection(name="site-1", data=str(data.resolve()), columns=columns)
    public = AnchorsSection(path=_absolute(anchors), columns=columns)
    section = ModelSection(name=_absolute(model))
    scenario = RunConfig(
        run=RunSection(name="my-run"), model=section, anchors=public, sites=(site,)
    )
    own = SiteConfig(site=site, model=section, anchors=public)
    targets = (folder / "scenario.toml", folder / "site.toml")
    for target in targets:
        if target.exists():
            message = f"{target} is already there; move it or choose another folder with --out"
            raise OutputError(message)
    head = (
        "# Made by `fedwinnow init`: every key with its default; delete what you do not change.\n\n"
    )
    write(targets[0], (head + to_toml(scenario, comments(RunConfig))).encode())
    write(targets[1], (head + to_toml(own, comments(SiteConfig))).encode())
    return targets


def _absolute(name: str) -> str:
    """A path that is there, from the root, so that the scenario works from any folder."""
    return str(Path(name).resolve()) if name and Path(name).exists() else name


def guess_columns(names: tuple[str, ...], source: str) -> ColumnsSection:
    """Map columns by the names that data sets commonly use.

    Raises:
        DataError: neither chat messages nor a prompt and a response can be found.
    """
    lower = {name.lower(): name for name in names}

    def first(choices: tuple[str, ...]) -> str:
        return next((lower[choice] for choice in choices if choice in lower), "")

    messages, prompt, response = first(CHATS), first(PROMPTS), first(RESPONSES)
    if not messages and not (prompt and response):
        message = (
            f"{source}: columns {', '.join(names)} hold no chat ({', '.join(CHATS)}) and no pair "
            f"of prompt ({', '.join(PROMPTS)}) and response ({', '.join(RESPONSES)}); rename two "
            "columns"
        )
        raise DataError(message)
    return ColumnsSection(
        prompt=prompt or "prompt",
        response=response or "response",
        messages=messages,
        domain=first(("domain", "category", "source")),
    )


def comments(cls: type) -> Mapping[str, str]:
    """Dotted key → the line of documentation that follows the field in ``curation/config.py``."""
    documented = _documentation()
    found: dict[str, str] = {}

    def visit(node: type, prefix: str) -> None:
        hints = typing.get_type_hints(node)
        for field in fields(node):
            hint = hints[field.name]
            inner = [hint, *typing.get_args(hint)]
            section = next((item for item in inner if is_dataclass(item)), None)
            if section is not None:
                visit(typing.cast("type", section), f"{prefix}{field.name}.")
            if (node.__name__, field.name) in documented:
                found[f"{prefix}{field.name}"] = documented[node.__name__, field.name]

    visit(cls, "")
    return found


def _documentation() -> Mapping[tuple[str, str], str]:
    found = {}
    nodes = [
        node
        for module in (sections, site_sections, server_sections, words)
        for node in ast.parse(inspect.getsource(module)).body
    ]
    for node in nodes:
        if not isinstance(node, ast.ClassDef):
            continue
        for field, text in zip(node.body, node.body[1:], strict=False):
            if (
                isinstance(field, ast.AnnAssign)
                and isinstance(field.target, ast.Name)
                and isinstance(text, ast.Expr)
                and isinstance(text.value, ast.Constant)
            ):
                found[node.name, field.target.id] = " ".join(str(text.value.value).split())
    return found
