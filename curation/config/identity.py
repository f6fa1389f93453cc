"""Compute what identifies a run: its settings as text, its run id, the folder of its sites."""

import functools
import hashlib
import re
from dataclasses import replace
from pathlib import Path

from fedwinnow.curation.config.coordinator import (
    CoordinatorSection,
    DeadlinesSection,
    QuorumSection,
)
from fedwinnow.curation.config.run import RunConfig
from fedwinnow.curation.config.strict_toml import canonical_json


def identity(config: RunConfig) -> str:
    """Return the settings that identify a run, as canonical JSON.

    Left out are the run's folder, deadlines, quorum and the coordinator's section.
    """
    return canonical_json(
        replace(
            config,
            run=replace(config.run, output=""),
            deadlines=DeadlinesSection(),
            quorum=QuorumSection(),
            coordinator=CoordinatorSection(),
        )
    )


def run_id(config: RunConfig) -> str:
    """Return our run id: the name, and a hash of every setting and of local data and anchors.

    Equal runs find their own state, and a run on changed data is another run.
    """
    digest = hashlib.sha256(identity(config).encode())
    for source in (config.anchors.path, *(site.data for site in config.sites)):
        digest.update(_content(source).encode())
    name = re.sub(r"[^A-Za-z0-9_-]", "-", config.run.name)[:48]  # a site makes a folder of it
    return f"{name}-{digest.hexdigest()[:12]}"


def _content(source: str) -> str:
    """Return the digests of a file or a folder's files; "" for a hub name or a missing path."""
    if not source:
        return ""
    path = Path(source)
    files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    stats = [(file, file.stat()) for file in files if file.is_file()]
    return " ".join(_digest(str(file), s.st_size, s.st_mtime_ns) for file, s in stats)


@functools.lru_cache(maxsize=256)
def _digest(file: str, size: int, changed: int) -> str:  # noqa: ARG001 - a changed file is read anew
    with open(file, "rb") as data:  # noqa: PTH123 - the name is the cache's key
        return hashlib.file_digest(data, "sha256").hexdigest()


def sites_folder(config: RunConfig) -> Path:
    """Return the folder of the simulated sites' own folders, inside the run folder."""
    return Path(config.run.output) / config.run.name / "sites"
