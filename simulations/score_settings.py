"""Build the settings of one silo that scores alone, and check them before anything heavy loads."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fedwinnow.client.data_files.sources import refuse_missing
from fedwinnow.curation.config.run import RunConfig
from fedwinnow.curation.config.strict_toml import parse, with_overrides


def score_settings(data: Path, anchors: Path, model: str) -> dict[str, Any]:
    """Return the settings before columns are guessed and overrides apply."""
    return {
        "run": {"name": "score"},
        "model": {"name": model},
        "anchors": {"path": str(anchors)},
        "sites": [{"name": "silo", "data": str(data)}],
    }


def check_score_settings(
    data: Path, anchors: Path, model: str, *, overrides: Sequence[str] = ()
) -> None:
    """Check what needs no look into the files.

    Raises:
        ConfigError: an override is wrong.
        DataError: a file or folder is missing.
    """
    for source in (data, anchors):
        refuse_missing(str(source))
    parse(with_overrides(score_settings(data, anchors, model), overrides), RunConfig)
