"""Split the public hold-out in two halves: one to choose by, the other to report.

A loss that decided between recipes is too good an estimate for the winner, so it is reported on
items that decided nothing. An item's half is a hash of its id alone: the same in every run and
seed.
"""

from dataclasses import dataclass

import numpy as np

from fedwinnow.client.data.anchors import split_scenario_anchors
from fedwinnow.curation.config.run import RunConfig
from fedwinnow.curation.datatypes import Sample
from fedwinnow.curation.errors import DataError
from fedwinnow.curation.model.pretrained import load_tokenizer
from fedwinnow.curation.seeds import derive_seed
from fedwinnow.curation.tokens.chat_templates import ChatFormat
from fedwinnow.curation.tokens.tokenization import encode_sample


@dataclass(frozen=True, slots=True, kw_only=True)
class Holdout:
    """Public items that a run of one seed evaluates, in the order of its losses."""

    samples: tuple[Sample, ...]
    choosing: np.ndarray
    """Mask of the items that choose; the others report."""

    @property
    def ids(self) -> tuple[str, ...]:
        """Return the ids of the items."""
        return tuple(sample.id for sample in self.samples)


def scenario_holdout(config: RunConfig) -> Holdout:
    """Return the hold-out of a scenario: its anchors without reference and calibration.

    Raises:
        DataError: the anchors are missing or too few for two halves.
        ModelError: the tokenizer cannot be loaded.
    """
    section, model = config.anchors, config.model
    split = split_scenario_anchors(config.anchors, config.run.seed)
    tokenizer = load_tokenizer(model)
    chat = ChatFormat.of(tokenizer)
    samples = tuple(
        sample
        for sample in split.holdout
        if encode_sample(
            tokenizer,
            sample,
            max_length=model.max_length,
            system_prompt=model.system_prompt,
            chat=chat,
        ).has_target
    )
    choosing = np.array([derive_seed(0, "choosing", s.id) % 2 == 0 for s in samples], dtype=bool)
    if not choosing.any() or choosing.all():
        message = (
            f"{section.path}: {len(samples)} of its anchors are the hold-out of seed "
            f"{config.run.seed}, too few for a half that chooses and one that reports; add anchors"
        )
        raise DataError(message)
    return Holdout(samples=samples, choosing=choosing)
