"""Write a commented scenario, ``site.toml`` and ``run.toml`` to edit: ``fedwinnow init``."""

import ast
import inspect
import logging
import textwrap
import typing
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from fedwinnow.client.data.column_guess import map_columns
from fedwinnow.client.data.samples import open_samples
from fedwinnow.curation.atomic_files import write_atomically
from fedwinnow.curation.config.coordinator import CoordinatorSection, MemberSection
from fedwinnow.curation.config.run import RunConfig
from fedwinnow.curation.config.scoring import (
    AnchorsSection,
    ColumnsSection,
    ModelSection,
    RunSection,
)
from fedwinnow.curation.config.site import SiteConfig, SiteSection
from fedwinnow.curation.config.strict_toml import to_plain, to_toml
from fedwinnow.curation.config.training import TrainingSection
from fedwinnow.curation.errors import OutputError

logger = logging.getLogger(__name__)


GROUPED = TrainingSection(accumulation=10, sample_grad_norm=1.0)
"""Training of a deployed run: steps of 40 samples hold a site's smallest group of 32, and in
warm-up a fifth of public rows; each sample's gradient is clipped, as a site's policy asks."""


def write_scenario(data: Path, anchors: str, model: str, folder: Path) -> tuple[Path, Path, Path]:
    """Write ``scenario.toml``, ``site.toml`` and ``run.toml`` with the data's columns mapped.

    Raises:
        DataError: the data cannot be read, or no known column names are among its columns.
        OutputError: a file is already there, or the folder cannot be written.
    """
    columns = map_columns(str(data))
    public_columns = map_columns(anchors) if Path(anchors).exists() else columns
    site = SiteSection(name="site-1", data=str(data.resolve()), columns=columns)
    public = AnchorsSection(path=_absolute(anchors), columns=public_columns)
    section = ModelSection(name=_absolute(model))
    scenario = RunConfig(
        run=RunSection(name="my-run"), model=section, anchors=public, sites=(site,)
    )
    own = SiteConfig(site=site, model=section, anchors=public)
    targets = (folder / "scenario.toml", folder / "site.toml", folder / "run.toml")
    _refuse_to_overwrite(*targets)
    _tell(str(data), columns)
    if Path(anchors).exists():
        _tell(anchors, public_columns)
    write_atomically(targets[0], _text("", scenario))
    write_atomically(targets[1], _text(SITE_STEPS, own))
    write_run(model, folder)
    return targets


def _tell(source: str, columns: ColumnsSection) -> None:
    """Log how a source was read, and what of it is not."""
    samples = open_samples(source, columns)
    logger.info("reads %s", samples.reading)
    for note in samples.notes:
        logger.warning("%s", note)


def write_run(model: str, folder: Path) -> Path:
    """Write ``run.toml`` alone, for a coordinator, who has no data.

    Raises:
        OutputError: it is already there, or the folder cannot be written.
    """
    run = RunConfig(
        run=RunSection(name="my-deployed-run", minimum_sites=2),
        model=ModelSection(name=_absolute(model)),
        training=GROUPED,
        coordinator=CoordinatorSection(key="coordinator.key", connection="federation"),
        members=tuple(MemberSection(name=f"site-{number}", key="") for number in (1, 2, 3)),
    )
    target = folder / "run.toml"
    _refuse_to_overwrite(target)
    # the anchors of a deployed run are those of the sites, and nothing of it is simulated
    write_atomically(target, _text(RUN_STEPS, run, without=WITHOUT))
    return target


def _refuse_to_overwrite(*targets: Path) -> None:
    for target in targets:
        if target.exists():
            message = f"{target} is already there; move it or choose another folder with --out"
            raise OutputError(message)


SITE_STEPS = """\
# A silo's own word: it outranks whatever a coordinator asks. What to edit:
#   site.name                       as the coordinator's [[members]] spell it
#   policy.coordinator              the line that the coordinator's `fedwinnow keys` printed
#   policy.anchors_hash             what `fedwinnow site check` prints, once all agreed on anchors
#   policy.allow_individual_updates  true, if the coordinator may see this site's adapter and
#                                   histogram by themselves; while it is false all is refused
#   site.smallest_cell, site.round_counts_to   how coarse counts and histograms are that leave
#   agent.socket, agent.token       SOCKET and TOKEN of silo.env
#   agent.group                     a group that the node's user is in, and nobody else
# Then: fedwinnow site check site.toml (it says what may leave), fedwinnow site serve site.toml.
"""
WITHOUT = ("teacher.name", "teacher.gguf_file", "anchors.path", "anchors.columns", "study")
"""Keys that mean nothing in a deployed run: each site holds these itself, and simulates nothing."""
RUN_STEPS = """\
# A deployed run, for the coordinator; docs/deploy/ says what else is started. What to edit:
#   coordinator.key     `fedwinnow keys coordinator.key` makes it; send what it prints to the silos
#   [[members]]         name and key of each silo, as its `fedwinnow site check` prints them
#   training.batch_size, training.accumulation   their product is what one step draws: at least
#                       policy.smallest_group of each silo, in warm-up some more for public rows
#   run.minimum_sites, [quorum], [deadlines]   how many must answer, and how long they are awaited
# Then: fedwinnow run run.toml, and in another terminal fedwinnow status run.toml.
"""


def _text(steps: str, node: RunConfig | SiteConfig, without: tuple[str, ...] = ()) -> bytes:
    """Return a commented file that says what to edit, with every key except ``without``."""
    head = (
        "# Made by `fedwinnow init`: every key with its default; delete what you do not change.\n"
    )
    tree = _leave_out(to_plain(node), without)
    return f"{head}{steps}\n{to_toml(tree, comments(type(node)))}".encode()


def _leave_out(tree: Mapping[str, Any], without: tuple[str, ...], prefix: str = "") -> Any:  # noqa: ANN401 - a tree of TOML
    """Return the tree without the dotted keys ``without``."""
    return {
        name: _leave_out(value, without, f"{prefix}{name}.")
        if isinstance(value, Mapping)
        else value
        for name, value in tree.items()
        if f"{prefix}{name}" not in without
    }


def _absolute(name: str) -> str:
    """Return an existing path as an absolute one, so that the scenario works from any folder."""
    return str(Path(name).resolve()) if name and Path(name).exists() else name


def comments(cls: type) -> Mapping[str, str]:
    """Return the documentation line that follows each field, by dotted key."""
    found: dict[str, str] = {}

    def visit(node: type, prefix: str) -> None:
        hints, documented = typing.get_type_hints(node), _field_comments(node)
        for field in fields(node):
            hint = hints[field.name]
            inner = [hint, *typing.get_args(hint)]
            section = next((item for item in inner if is_dataclass(item)), None)
            if section is not None:
                visit(typing.cast("type", section), f"{prefix}{field.name}.")
            if field.name in documented:
                found[f"{prefix}{field.name}"] = documented[field.name]

    visit(cls, "")
    return found


def _field_comments(cls: type) -> Mapping[str, str]:
    """Return the text that follows each field of a dataclass in its source, on one line."""
    (node,) = ast.parse(textwrap.dedent(inspect.getsource(cls))).body
    body = typing.cast("ast.ClassDef", node).body
    return {
        field.target.id: " ".join(str(text.value.value).split())
        for field, text in pairwise(body)
        if isinstance(field, ast.AnnAssign)
        and isinstance(field.target, ast.Name)
        and isinstance(text, ast.Expr)
        and isinstance(text.value, ast.Constant)
    }
