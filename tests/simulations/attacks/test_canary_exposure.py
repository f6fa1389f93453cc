"""Laws of canary exposure, and what a released adapter tells of a repeated sentence."""

import json

import pytest
import torch

from fedwinnow.simulations.attacks.canary_exposure import (
    ALTERNATIVES,
    canary_exposure,
    exposure,
    sentence,
    toy_base,
)


def test_exposure_of_the_likeliest_is_all_of_it():
    """Rank 1 of 1,024 is 10 bits, the last rank is 0 bits, a tie counts against the canary."""
    losses = [float(i) for i in range(1024)]
    assert exposure(losses, 0) == (1, 10.0)
    assert exposure(losses, 1023) == (1024, 0.0)
    assert exposure([1.0, 1.0], 0) == (2, 0.0)


def test_exposure_alternatives_are_a_thousand_sentences_of_one_length():
    """Every code gives another sentence of the same length, so only the code can tell."""
    told = [sentence(code) for code in range(ALTERNATIVES)]
    assert len(set(told)) == 1_000
    assert len({len(text) for text in told}) == 1
    assert "3 1 4" in told[314]


@pytest.fixture
def one_thread():
    """Cores that are shared make two threads slower than one."""
    kept = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(kept)


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
def test_exposure_of_a_repeated_canary_shows_in_the_released_adapter(
    tmp_path, record_property, capsys
):
    """Rank among 1,000 under the merge of three sites: 24 repeats tell bits that 0 do not."""
    base = toy_base(tmp_path / "model")
    found = {repeats: canary_exposure(base, repeats) for repeats in (0, 24)}
    told = {str(r): {"rank": f.rank, "bits": round(f.exposure, 2)} for r, f in found.items()}
    record_property("canary-exposure", json.dumps(told))
    with capsys.disabled():
        print(f"\ncanary among 1,000 alternatives, by repeats: {told}")  # noqa: T201 - the test reports
    assert found[24].rank <= 100 < found[0].rank
    assert found[24].exposure > found[0].exposure + 2
    assert found[24].loss < found[24].mean_loss
