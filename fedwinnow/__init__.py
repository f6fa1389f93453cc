"""fedwinnow: federated collaborative curation for language models.

``import fedwinnow as fw`` offers the names of ``__all__`` (docs/api.md), each loaded when it is
first used: the import itself loads neither torch nor numpy, transformers or Flower.
"""

from importlib import import_module as _import_module
from pathlib import Path as _Path
from typing import TYPE_CHECKING

_here = _Path(__file__).parent
if not (_here / "client" / "app.py").is_file():  # no links: sub-packages are this folder's siblings
    __path__.append(str(_here.parent))

if TYPE_CHECKING:
    from fedwinnow.api.datatypes import (
        Adapter,
        PublicRows,
        RunConfig,
        RunRecord,
        Sample,
        Scores,
        ScoreSummary,
        Selection,
        SignalTable,
        errors,
    )
    from fedwinnow.api.flower import CurationStrategy
    from fedwinnow.api.measuring import measure, measure_public, open_samples
    from fedwinnow.api.merging import load_adapter, merge, save_adapter
    from fedwinnow.api.models import load_model
    from fedwinnow.api.plugins import assert_lawful, build, plugins
    from fedwinnow.api.running import load_scenario, score_silo, simulate
    from fedwinnow.api.scoring import draw, edges, select, summarise

__all__ = [  # noqa: RUF022 - in the order of docs/api.md
    "load_model",
    "open_samples",
    "measure_public",
    "measure",
    "build",
    "plugins",
    "assert_lawful",
    "edges",
    "summarise",
    "draw",
    "select",
    "load_adapter",
    "save_adapter",
    "merge",
    "load_scenario",
    "simulate",
    "score_silo",
    "CurationStrategy",
    "Sample",
    "SignalTable",
    "PublicRows",
    "Scores",
    "ScoreSummary",
    "Selection",
    "Adapter",
    "RunConfig",
    "RunRecord",
    "errors",
]

if not TYPE_CHECKING:  # a type checker that saw it would take any name for one of ours
    _FILES = {
        "datatypes": "Adapter PublicRows RunConfig RunRecord Sample Scores ScoreSummary Selection "
        "SignalTable errors",
        "flower": "CurationStrategy",
        "measuring": "measure measure_public open_samples",
        "merging": "load_adapter merge save_adapter",
        "models": "load_model",
        "plugins": "assert_lawful build plugins",
        "running": "load_scenario score_silo simulate",
        "scoring": "draw edges select summarise",
    }

    def __getattr__(name: str) -> object:
        """Load a name of the public API from its file in ``fedwinnow.api``."""
        for file, names in _FILES.items():
            if name in names.split():
                found = getattr(_import_module(f"fedwinnow.api.{file}"), name)
                globals()[name] = found
                return found
        message = f"module 'fedwinnow' has no attribute {name!r}"
        raise AttributeError(message, name=name)

    def __dir__() -> list[str]:
        """Return the names of the public API beside those of any module."""
        return sorted({*globals(), *__all__})
