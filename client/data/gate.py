"""Gate a silo's samples: labels, length, personal data, control tokens, duplicates, anchors.

Two samples are near duplicates if their texts (turns, prompt and response together) are at least
``gate.near_duplicates`` similar in 5-word shingles, *and* prompt agrees with prompt and response
with response in their words (Jaccard ≥ 0.8, or the threshold if that is lower). The second half is
a decision: the same answer under another prompt is no duplicate, however long the answer.
Otherwise a wrongly answered question could push out the sample that it took its answer from. Nor
are two short answers about one long passage duplicates.

Against anchors a sample overlaps more easily: prompt and response together, or a response of eight
words or more alone. Such samples are dropped silently, and the reason stays at the site: a refusal
would reveal what a silo holds.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from fedwinnow.client.data.minhash import (
    Index,
    Shingles,
    number_bands,
    shared_keys,
    shingles,
    sign_texts,
    similarity,
    text_words,
)
from fedwinnow.client.data.personal_data import Finder, finder
from fedwinnow.curation.config.site import GateSection
from fedwinnow.curation.datatypes import Sample
from fedwinnow.curation.tokens.chat_templates import spelt_control_token

LONG_RESPONSE = 8
"""Fewest words of a response that is compared with the anchors by itself."""
SAME_PART = 0.8
"""Jaccard similarity of words from which two prompts, or two responses, count as the same."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GateResult:
    """Rows that pass the gates, and the reason of each row that does not."""

    kept: tuple[int, ...]
    reasons: Mapping[int, str]
    control_tokens: int = 0
    """Samples whose text spells a control token of the tokenizer, kept or not."""


def apply_gates(
    samples: Sequence[Sample],
    anchors: Sequence[Sample],
    section: GateSection,
    control: re.Pattern[str] | None = None,
) -> GateResult:
    """Apply a site's gates in the order of the data; of duplicates the first is kept.

    Args:
        samples: The silo's data; read three times, texts are not kept.
        anchors: Public anchors.
        section: The site's own settings.
        control: Matches a control token of the tokenizer; None where there is no tokenizer.

    Returns:
        Rows kept, and a reason for every other row.

    Raises:
        ConfigError: ``gate.personal_data`` holds an unknown name or a malformed pattern.
    """
    threshold = section.near_duplicates
    near_anchor = set(overlaps_anchors(samples, anchors, threshold))
    known = sign_texts((shingles(_whole(one)) for one in samples), len(samples), threshold)
    useful = shared_keys(known.keys)
    personal = finder(section.personal_data)
    index = Index(threshold=threshold)
    seen: set[str] = set()
    kept: list[int] = []
    spelling = 0
    reasons: dict[int, str] = {}
    for row, sample in enumerate(samples):
        keys = number_bands(known.keys[row])[useful[row]]
        token = spelt_control_token(sample, control) if control else ""
        spelling += bool(token)
        if reason := _own(sample, section, personal):
            reasons[row] = reason
        elif token and section.control_tokens == "drop":
            reasons[row] = f"spells the tokenizer's control token {token!r}"
        elif row in near_anchor:
            reasons[row] = "equals or nearly equals a public anchor"
        elif sample.id in seen:
            reasons[row] = "exact duplicate"
        elif any(
            near_duplicates(sample, samples[other], threshold)
            for other in index.candidates(keys, known.bytes[row], known)
        ):
            reasons[row] = "near duplicate"
        else:
            seen.add(sample.id)
            index.add(row, keys)
            kept.append(row)
    return GateResult(kept=tuple(kept), reasons=reasons, control_tokens=spelling)


def _own(sample: Sample, section: GateSection, personal: Finder) -> str:
    """Return why a sample by itself may not pass (label, length, personal data), or ""."""
    for name, allowed in (("licence", section.licences), ("language", section.languages)):
        label = sample.labels.get(name, "")
        if allowed and label not in allowed:
            return f"{name} {label!r} is not allowed"
    whole = _whole(sample)
    if len(sample.response) < section.shortest:
        return f"response of {len(sample.response)} characters is too short"
    if section.longest and len(whole) > section.longest:
        return f"text of {len(whole)} characters is too long"
    kind = personal(whole)
    return f"looks like personal data: {kind}" if kind else ""


def near_duplicates(one: Sample, other: Sample, threshold: float) -> bool:
    """Return whether two samples of a silo are near duplicates, by exact similarity."""
    part = min(SAME_PART, threshold)
    return (
        similarity(shingles(_whole(one)), shingles(_whole(other))) >= threshold
        and similarity(frozenset(text_words(one.prompt)), frozenset(text_words(other.prompt)))
        >= part
        and similarity(frozenset(text_words(one.response)), frozenset(text_words(other.response)))
        >= part
    )


def overlaps_anchors(
    samples: Sequence[Sample], anchors: Sequence[Sample], threshold: float
) -> tuple[int, ...]:
    """Return rows that nearly equal an anchor: prompt and response, or a long response alone.

    Args:
        samples: Private samples, read once.
        anchors: Public anchors; few, so their shingles are held.
        threshold: Jaccard similarity of shingles from which texts overlap, in (0, 1].
    """
    public = [text for anchor in anchors for text in _comparable(anchor)]
    known = sign_texts(public, len(public), threshold)
    index = Index(threshold=threshold)
    for place in range(len(public)):
        index.add(place, number_bands(known.keys[place]))

    def is_public(text: Shingles) -> bool:
        own = sign_texts([text], 1, threshold)
        return any(
            similarity(text, public[place]) >= threshold
            for place in index.candidates(number_bands(own.keys[0]), own.bytes[0], known)
        )

    return tuple(
        row for row, sample in enumerate(samples) if any(map(is_public, _comparable(sample)))
    )


def _comparable(sample: Sample) -> Iterator[Shingles]:
    """Yield what is compared with the anchors: the last exchange, and a long response alone."""
    yield shingles(f"{sample.prompt} {sample.response}")
    if len(text_words(sample.response)) >= LONG_RESPONSE:
        yield shingles(sample.response)


def _whole(sample: Sample) -> str:
    turns = (text for turn in sample.conversation for text in (turn.content, turn.details))
    return " ".join((*filter(None, turns), sample.tools)).strip()
