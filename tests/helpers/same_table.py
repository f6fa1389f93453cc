"""Equality of two signal tables, bit for bit."""

import numpy as np

from fedwinnow.curation.datatypes import SignalTable


def same(one: SignalTable, other: SignalTable) -> None:
    """Bit for bit."""
    assert (one.ids, one.domains, one.checkpoint) == (other.ids, other.domains, other.checkpoint)
    assert (one.references, one.learning_rate) == (other.references, other.learning_rate)
    np.testing.assert_array_equal(one.status, other.status)
    np.testing.assert_array_equal(one.reference_gram, other.reference_gram)
    assert set(one.columns) == set(other.columns)
    for name, values in one.columns.items():
        np.testing.assert_array_equal(values, other.columns[name])
        assert values.dtype == other.columns[name].dtype
