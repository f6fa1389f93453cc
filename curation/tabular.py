"""Named columns as an Arrow table or a pandas frame, for the nouns that have one row per sample."""

import importlib.util
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fedwinnow.curation.errors import ConfigError

Columns = Mapping[str, np.ndarray[Any, np.dtype[Any]]]


def as_columns(signals: Columns, references: Sequence[str]) -> dict[str, Any]:
    """Return signals, sorted by name, as one-dimensional columns.

    A signal of shape (samples, references) becomes ``name.reference`` for each reference.
    """
    found: dict[str, Any] = {}
    for name, values in sorted(signals.items()):
        if values.ndim == 1:
            found[name] = values
        else:
            found |= {f"{name}.{one}": values[:, k] for k, one in enumerate(references)}
    return found


def as_table(columns: Mapping[str, Any]) -> Any:  # noqa: ANN401 - pyarrow has no types
    """Return columns of equal length as a ``pyarrow.Table``; strided arrays are copied."""
    import pyarrow as pa  # noqa: PLC0415 - the nouns are loaded where no table is made

    return pa.table(
        {
            name: np.ascontiguousarray(values) if isinstance(values, np.ndarray) else values
            for name, values in columns.items()
        }
    )


def as_frame(table: Any) -> Any:  # noqa: ANN401 - neither pyarrow nor pandas has types here
    """Return a ``pyarrow.Table`` as a ``pandas.DataFrame``.

    Raises:
        ConfigError: pandas is not installed.
    """
    if importlib.util.find_spec("pandas") is None:
        message = (
            "to_pandas needs pandas, and it is not installed; run pip install "
            "'fedwinnow[notebook]', or use to_arrow()"
        )
        raise ConfigError(message)
    return table.to_pandas()


def counted(number: int, noun: str, plural: str = "") -> str:
    """Return a number with its noun: ``1 sample``, ``120 samples``."""
    return f"{number} {noun if number == 1 else plural or noun + 's'}"
