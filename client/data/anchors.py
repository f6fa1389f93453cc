"""Split the public anchors into three disjoint parts, and make the calibration rows of one.

A part is chosen by the hash of (seed, id) within each domain, so the order of the file changes
nothing and every site gets the same parts. Corrupted copies follow their parent.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from fedwinnow.client.data.corruption import corrupt
from fedwinnow.client.data.samples import open_samples
from fedwinnow.curation.config.scoring import AnchorsSection
from fedwinnow.curation.datatypes import Sample
from fedwinnow.curation.errors import DataError
from fedwinnow.curation.seeds import derive_seed


@dataclass(frozen=True, slots=True, kw_only=True)
class AnchorSplit:
    """Disjoint parts of the anchors, each sorted by id."""

    reference: tuple[Sample, ...]
    calibration: tuple[Sample, ...]
    holdout: tuple[Sample, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class CalibrationRows:
    """Clean calibration anchors and their corruptions."""

    samples: tuple[Sample, ...]
    kinds: tuple[str, ...]
    """Per row: "clean" or the kind of corruption."""
    parents: tuple[str, ...]
    """Per row: id of the clean anchor that it is or was made from."""


def split_anchors(
    anchors: Sequence[Sample], *, reference: float, calibration: float, seed: int
) -> AnchorSplit:
    """Split anchors into disjoint parts, domain by domain.

    Args:
        anchors: Clean public samples; equal contents count once, whatever their domain.
        reference: Share in (0, 1) for reference gradients.
        calibration: Share in (0, 1) to be corrupted; the rest is the hold-out.
        seed: Seed of the split.

    Raises:
        DataError: there is no anchor, or a part of a domain would be empty; names the domain.
    """
    unique: dict[str, Sample] = {}
    for anchor in anchors:
        held = unique.setdefault(anchor.id, anchor)
        if anchor.domain < held.domain:  # not the first of the file: its order must not matter
            unique[anchor.id] = anchor
    by_domain: dict[str, list[Sample]] = {}
    for anchor in unique.values():
        by_domain.setdefault(anchor.domain, []).append(anchor)
    if not by_domain:
        message = (
            "anchors: expected clean public samples, got none; give anchors.path a file of them"
        )
        raise DataError(message)
    parts: tuple[list[Sample], ...] = ([], [], [])
    for domain, members in sorted(by_domain.items()):
        ordered = sorted(members, key=lambda s: (derive_seed(seed, "split", s.id), s.id))
        first, second = round(reference * len(ordered)), round(calibration * len(ordered))
        cut = (ordered[:first], ordered[first : first + second], ordered[first + second :])
        for name, part in zip(("reference", "calibration", "hold-out"), cut, strict=True):
            if not part:
                message = (
                    f"anchors: domain {domain!r} has {len(ordered)} anchors and the {name} part "
                    "would be empty; add anchors or change anchors.reference and "
                    "anchors.calibration"
                )
                raise DataError(message)
        for target, part in zip(parts, cut, strict=True):
            target.extend(part)
    chosen = [tuple(sorted(part, key=lambda sample: sample.id)) for part in parts]
    return AnchorSplit(reference=chosen[0], calibration=chosen[1], holdout=chosen[2])


def split_scenario_anchors(section: AnchorsSection, seed: int) -> AnchorSplit:
    """Split a scenario's anchors, for tools that hold its files.

    Args:
        section: Where the anchors are, and the shares.
        seed: Seed of the run.

    Raises:
        DataError: the file is missing or malformed, or a part would be empty.
    """
    return split_by(section, open_samples(section.path, section.columns), seed)


def split_by(section: AnchorsSection, anchors: Sequence[Sample], seed: int) -> AnchorSplit:
    """Split anchors by the shares of a run.

    Args:
        section: The shares.
        anchors: Clean public samples.
        seed: The run's.

    Raises:
        DataError: there is no anchor, or a part would be empty.
    """
    return split_anchors(
        anchors,
        reference=section.reference,
        calibration=section.calibration,
        seed=derive_seed(seed, "anchors"),
    )


def calibration_by(section: AnchorsSection, split: AnchorSplit, seed: int) -> CalibrationRows:
    """Corrupt the calibration part as a run does.

    Args:
        section: Kinds and copies.
        split: The anchors in parts.
        seed: The run's.

    Raises:
        DataError: a kind is unknown, or cannot be made from so few anchors.
    """
    return calibration_rows(
        split.calibration,
        corruptions=section.corruptions,
        copies=section.copies,
        seed=derive_seed(seed, "calibration"),
    )


def corrupted_references(
    section: AnchorsSection, split: AnchorSplit, seed: int
) -> tuple[Sample, ...]:
    """Corrupt the reference part: no copy of a calibration row, so scores stay honest.

    Args:
        section: Kinds and copies.
        split: The anchors in parts.
        seed: The run's.

    Raises:
        DataError: a kind cannot be made from so few anchors.
    """
    rows = calibration_rows(
        split.reference,
        corruptions=section.corruptions,
        copies=section.copies,
        seed=derive_seed(seed, "corrupted references"),
    )
    return tuple(s for s, kind in zip(rows.samples, rows.kinds, strict=True) if kind != "clean")


def calibration_rows(
    anchors: Sequence[Sample], *, corruptions: Sequence[str], copies: int, seed: int
) -> CalibrationRows:
    """Return each anchor clean, then ``copies`` corruptions of it.

    Kinds are dealt in turn over all copies, so their numbers differ by one at most.

    Args:
        anchors: Clean public samples of the calibration part.
        corruptions: Kinds of corruption, by name.
        copies: Corrupted copies of each anchor, at least 1.
        seed: Seed of the corruptions.

    Raises:
        DataError: a kind is unknown, or cannot be made from these anchors.
    """
    rows: list[tuple[Sample, str, str]] = []
    dealt = 0
    for anchor in anchors:
        rows.append((anchor, "clean", anchor.id))
        for copy in range(copies):
            kind = corruptions[dealt % len(corruptions)]
            dealt += 1
            bad = corrupt(anchor, kind, pool=anchors, seed=derive_seed(seed, anchor.id, copy))
            rows.append((bad, kind, anchor.id))
    return CalibrationRows(
        samples=tuple(row[0] for row in rows),
        kinds=tuple(row[1] for row in rows),
        parents=tuple(row[2] for row in rows),
    )
