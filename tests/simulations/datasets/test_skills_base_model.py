"""Laws of the base model of generated skills: made whole, made alike, and it learns."""

import json

import pytest
import torch

from fedwinnow.curation.config.scoring import AdapterSection, ModelSection
from fedwinnow.curation.errors import ConfigError, NonFiniteError, OutputError
from fedwinnow.curation.model.pretrained import load_model
from fedwinnow.simulations.datasets.skills_base_model import (
    BaseSection,
    base_model_folder,
    write_base_model,
)

SMALL = BaseSection(steps=12, batch_size=8, hidden=32, layers=1, vocabulary=320)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return base_model_folder(tmp_path_factory.mktemp("base"), SMALL)


def test_base_model_is_an_ordinary_model_folder(made):
    """The project's own loader takes it; base.json says how it was made; it is below the limit."""
    about = json.loads((made / "base.json").read_text())
    assert about["steps"] == SMALL.steps
    loaded = load_model(ModelSection(name=str(made)), AdapterSection(targets=("q_proj",)), seed=0)
    frozen = [p for name, p in loaded.model.named_parameters() if "lora" not in name]
    assert about["weights"] == sum(p.numel() for p in frozen) < 2_000_000
    text = "Work out 7 + 12 step by step."
    tokens = loaded.tokenizer(text, add_special_tokens=False).input_ids
    assert loaded.tokenizer.decode(tokens) == text


def test_base_model_is_made_once_and_alike(made, tmp_path):
    """A second call makes nothing; the same settings elsewhere give the same weights."""
    before = (made / "model.safetensors").stat().st_mtime_ns
    assert base_model_folder(made.parent, SMALL) == made
    assert (made / "model.safetensors").stat().st_mtime_ns == before
    again = base_model_folder(tmp_path, SMALL)
    assert again.name == made.name
    assert (again / "model.safetensors").read_bytes() == (made / "model.safetensors").read_bytes()


def test_base_model_learns(made, tmp_path):
    """More steps end at a lower loss than the first steps do."""
    longer = write_base_model(
        tmp_path / "longer",
        BaseSection(steps=36, batch_size=8, hidden=32, layers=1, vocabulary=320),
    )
    first, last = (
        json.loads((one / "base.json").read_text())["last_loss"] for one in (made, longer)
    )
    assert last < 0.9 * first


def test_base_model_leaves_nothing_half_made(tmp_path):
    """A wrong setting, a target that is there and a loss that is no number are named errors."""
    with pytest.raises(ConfigError, match="at least 1"):
        write_base_model(tmp_path / "none", BaseSection(steps=0))
    (tmp_path / "there").mkdir()
    with pytest.raises(OutputError, match="already there"):
        write_base_model(tmp_path / "there", SMALL)
    wild = BaseSection(steps=6, batch_size=4, hidden=32, layers=1, learning_rate=1e30)
    state = torch.random.get_rng_state()
    with pytest.raises(NonFiniteError):
        write_base_model(tmp_path / "wild", wild)
    assert {path.name for path in tmp_path.iterdir()} == {"there"}
    assert torch.equal(torch.random.get_rng_state(), state)
