"""Open a site's data for a run: gated samples, own hold-out, and anchors in three parts.

Built alike at every site from the agreed terms; opened lazily, so that texts stay on the disk.
"""

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import overload

from fedwinnow.client.data.anchors import (
    AnchorSplit,
    CalibrationRows,
    calibration_by,
    split_by,
)
from fedwinnow.client.data.gate import GateResult, apply_gates
from fedwinnow.client.data.samples import Samples, data_hash, open_samples
from fedwinnow.curation.config.run import RunTerms
from fedwinnow.curation.config.site import SiteConfig
from fedwinnow.curation.datatypes import Sample
from fedwinnow.curation.errors import DataError
from fedwinnow.curation.seeds import derive_seed

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteData:
    """Samples, own hold-out and anchors of one site under one run's terms."""

    samples: Samples
    """Private samples that passed the gate, less the own hold-out."""
    own_holdout: Samples
    dropped: Mapping[str, str]
    """Row of the data, from 0 → why the gate dropped it; stays at the site."""
    split: AnchorSplit
    rows: CalibrationRows
    anchors_hash: str


def open_site_data(
    config: SiteConfig, terms: RunTerms, control: re.Pattern[str] | None = None
) -> SiteData:
    """Open and gate a site's data, and split the anchors.

    Args:
        config: The site's own settings.
        terms: The run's.
        control: Matches a control token of the tokenizer; None where there is no tokenizer.

    Raises:
        DataError: a file or column is missing or malformed, or nothing passes the gate.
    """
    site, anchors_section = config.site, config.anchors
    anchors = open_samples(anchors_section.path, anchors_section.columns)
    split = split_by(terms.anchors, anchors, terms.run.seed)
    rows = calibration_by(terms.anchors, split, terms.run.seed)
    everything = open_samples(site.data, site.columns, domain=site.domain)
    gated = apply_gates(everything, anchors, site.gate, control)
    if not gated.kept:
        message = (
            f"{site.data}: none of {len(everything)} samples passes the gate of site {site.name}; "
            "look at sites.gate and at duplicates of the anchors"
        )
        raise DataError(message)
    held = [
        index
        for index in gated.kept
        if holdout_share(terms.run.seed, everything.ids[index]) < terms.evaluation.own_holdout
    ]
    chosen = sorted(set(gated.kept) - set(held))
    if not chosen:
        message = f"{site.data}: evaluation.own_holdout leaves no sample to train on; lower it"
        raise DataError(message)
    _tell(config, everything, anchors, gated)
    return SiteData(
        samples=everything.subset(chosen),
        own_holdout=everything.subset(held),
        dropped={str(row): reason for row, reason in gated.reasons.items()},
        split=split,
        rows=rows,
        anchors_hash=data_hash(anchors),
    )


def _tell(config: SiteConfig, everything: Samples, anchors: Samples, gated: GateResult) -> None:
    """Log how the data were read, what was not read, and what the gate found."""
    name, treated = config.site.name, config.site.gate.control_tokens
    dropped = len(gated.reasons)
    told = logger.warning if dropped and config.simulation else logger.info
    told("site %s: of %d samples the gate drops %d", name, len(everything), dropped)
    logger.info("site %s reads %s", name, everything.reading)
    for note in everything.notes:
        logger.warning("site %s: %s", name, note)
    for note in anchors.notes:
        logger.info("site %s: anchors: %s", name, note)
    if gated.control_tokens:
        logger.warning(
            "site %s: %d of %d samples spell a control token of the tokenizer; %s "
            "(gate.control_tokens = %r)", name, gated.control_tokens, len(everything),
            "it is encoded as text" if treated == "text" else "they are left out",
            treated,
        )  # fmt: skip


def warm_up_samples(data: SiteData, site: str, sites: Sequence[str], seed: int) -> "ConcatSequence":
    """Return private samples and this site's part of the calibration rows, for equal exposure.

    Every calibration row trains at exactly one site, and within a site each row is drawn as often
    as a private sample: signals of both then have seen the model equally (design, section 4).
    """
    ordered = sorted(sites)
    mine = [
        sample
        for sample in data.rows.samples
        if ordered[derive_seed(seed, "exposure", sample.id) % len(ordered)] == site
    ]
    return ConcatSequence(parts=(data.samples, mine))


@dataclass(frozen=True, slots=True, kw_only=True)
class ConcatSequence(Sequence[Sample]):
    """Several sample sequences read as one, without copying any."""

    parts: tuple[Sequence[Sample], ...]

    def __len__(self) -> int:
        return sum(len(part) for part in self.parts)

    @overload
    def __getitem__(self, index: int) -> Sample: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Sample]: ...
    def __getitem__(self, index: int | slice) -> Sample | Sequence[Sample]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        position = index if index >= 0 else len(self) + index
        for part in self.parts:
            if 0 <= position < len(part):
                return part[position]
            position -= len(part)
        message = f"sample {index} of {len(self)}"
        raise IndexError(message)


def holdout_share(seed: int, sample_id: str) -> float:
    """Return a sample's place in [0, 1): below ``evaluation.own_holdout`` it is held out."""
    return derive_seed(seed, "own-holdout", sample_id) / 2**63
