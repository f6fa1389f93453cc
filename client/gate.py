"""What a silo lets into its own pool: licences, duplicates, distance to the public anchors.

Near duplicates: the Jaccard similarity |S ∩ T| / |S ∪ T| of two texts' 5-word shingles. Candidates
come from MinHash signatures in bands, each is then verified exactly. Prompt and response count
together, so an answer that stands under a wrong prompt is no duplicate of itself under the right
one. Against anchors a response of eight words or more also counts alone.

Samples that overlap an anchor are dropped silently: a refusal would tell what a silo holds.

Reference:
    A. Broder, On the Resemblance and Containment of Documents, SEQUENCES 1997,
    https://doi.org/10.1109/SEQUEN.1997.666900
"""

import functools
import re
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from fedwinnow.curation.config import GateSection
from fedwinnow.curation.nouns import Sample

SHINGLE = 5
LONG_RESPONSE = 8
"""Words from which a response alone counts against the anchors."""
_BANDS, _ROWS = 32, 4
_PRIME = (1 << 61) - 1

Shingles = frozenset[int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Gated:
    """Which rows pass, and why each other one does not."""

    kept: tuple[int, ...]
    reasons: Mapping[int, str]


def gate(samples: Sequence[Sample], anchors: Sequence[Sample], section: GateSection) -> Gated:
    """Apply a site's gates in the order of the data; of duplicates the first is kept.

    Args:
        samples: The silo's data; read once, texts are not kept.
        anchors: Public anchors.
        section: The site's own settings.
    """
    near_anchor = set(overlapping(samples, anchors, section.near_duplicates))
    index = Index(threshold=section.near_duplicates)
    seen: set[str] = set()
    kept: list[int] = []
    reasons: dict[int, str] = {}
    for row in range(len(samples)):
        sample = samples[row]
        licence = sample.labels.get("licence", "")
        if section.licences and licence not in section.licences:
            reasons[row] = f"licence {licence!r} is not allowed"
        elif row in near_anchor:
            reasons[row] = "equals or nearly equals a public anchor"
        elif sample.id in seen:
            reasons[row] = "exact duplicate"
        elif index.find(_whole(sample)) is not None:
            reasons[row] = "near duplicate"
        else:
            seen.add(sample.id)
            index.add(_whole(sample))
            kept.append(row)
    return Gated(kept=tuple(kept), reasons=reasons)


def overlapping(
    samples: Sequence[Sample], anchors: Sequence[Sample], threshold: float
) -> tuple[int, ...]:
    """Rows that equal or nearly equal an anchor, as a whole or by a long response alone."""
    whole, answers = Index(threshold=threshold), Index(threshold=threshold)
    for anchor in anchors:
        whole.add(_whole(anchor))
        if len(_words(anchor.response)) >= LONG_RESPONSE:
            answers.add(shingles(anchor.response))
    found = []
    for row in range(len(samples)):
        sample = samples[row]
        long = len(_words(sample.response)) >= LONG_RESPONSE
        if whole.find(_whole(sample)) is not None or (
            long and answers.find(shingles(sample.response)) is not None
        ):
            found.append(row)
    return tuple(found)


def shingles(text: str) -> Shingles:
    """32-bit hashes of the runs of five words; a shorter text is one run."""
    words = _words(text)
    runs = [" ".join(words[i : i + SHINGLE]) for i in range(max(1, len(words) - SHINGLE + 1))]
    return frozenset(zlib.crc32(run.encode("utf-8", "surrogatepass")) for run in runs)


def similarity(one: Shingles, other: Shingles) -> float:
    """Jaccard similarity in [0, 1]; two empty texts are equal."""
    either = len(one | other)
    return len(one & other) / either if either else 1.0


@dataclass(slots=True, kw_only=True)
class Index:
    """Finds a near duplicate among texts added before."""

    threshold: float
    _texts: list[np.ndarray] = field(default_factory=list)
    """Sorted shingle hashes of each text: numbers, not words."""
    _buckets: dict[tuple[int, bytes], list[int]] = field(default_factory=dict)

    def add(self, text: Shingles) -> None:
        """Remember a text."""
        self._texts.append(np.array(sorted(text), dtype=np.uint32))
        for key in _keys(text):
            self._buckets.setdefault(key, []).append(len(self._texts) - 1)

    def find(self, text: Shingles) -> int | None:
        """The first text at least ``threshold`` similar, or None."""
        candidates = {place for key in _keys(text) for place in self._buckets.get(key, ())}
        for place in sorted(candidates):
            if similarity(text, frozenset(self._texts[place].tolist())) >= self.threshold:
                return place
        return None


def _keys(text: Shingles) -> list[tuple[int, bytes]]:
    """(band, its part of the MinHash signature) of a text."""
    hashes = np.array(sorted(text), dtype=np.uint64)
    a, b = _permutations()
    # (a h + b) mod 2^61 − 1 in 64 bits: h < 2^32 and a < 2^29 keep the product exact.
    signature = ((hashes[None, :] * a[:, None] + b[:, None]) % np.uint64(_PRIME)).min(axis=1)
    return [(band, part.tobytes()) for band, part in enumerate(signature.reshape(_BANDS, _ROWS))]


@functools.cache
def _permutations() -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(61)
    number = _BANDS * _ROWS
    first = random.integers(1, 1 << 29, number, dtype=np.uint64)
    return first, random.integers(0, 1 << 60, number, dtype=np.uint64)


def _whole(sample: Sample) -> Shingles:
    turns = " ".join(content for _, content in sample.history)
    return shingles(f"{turns} {sample.prompt} {sample.response}")


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())
