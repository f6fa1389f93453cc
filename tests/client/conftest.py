"""Silos with policies of their own."""

import pytest
from policy_silo import Silo


@pytest.fixture
def silo(tmp_path):
    """Make silos with policies; their ledgers are closed at the end."""
    made = []

    def make(**section):
        folder = tmp_path / str(len(made))
        made.append(Silo(folder, **section))
        return made[-1]

    yield make
    for one in made:
        one.ledger.close()
