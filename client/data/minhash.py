"""Find candidates for near duplicates by MinHash bands, for the caller to verify exactly.

Similarity of two texts is the Jaccard index J = |S ∩ T| / |S ∪ T| of their 5-word shingles. Two
texts share one MinHash value with probability J. With k values in k/r bands of r, a pair becomes a
candidate with probability 1 − (1 − J^r)^(k/r); r is chosen so that at the threshold a pair is
missed at most once in a million (thresholds from 0.11). Kept per text: k bytes and k/r band keys.

Own code, as datasketch keeps 1 KB of hash values a text where 128 bytes do.

Reference:
    A. Broder, On the Resemblance and Containment of Documents, SEQUENCES 1997,
    https://doi.org/10.1109/SEQUEN.1997.666900
    A. Gionis, P. Indyk, R. Motwani, Similarity Search in High Dimensions via Hashing, VLDB 1999
"""

import re
import zlib
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

SHINGLE = 5
"""Words of one shingle."""
HASHES = 128
"""MinHash values k of a text."""
MISSED = 1e-6
"""Largest probability that a pair at the threshold is no candidate."""

Shingles = frozenset[int]


def text_words(text: str) -> list[str]:
    """Return the words of a text in lower case, without punctuation."""
    return re.findall(r"\w+", text.lower())


def shingles(text: str) -> Shingles:
    """Return 32-bit hashes of all runs of five words; a shorter text is one run."""
    found = text_words(text)
    runs = (" ".join(found[i : i + SHINGLE]) for i in range(max(1, len(found) - SHINGLE + 1)))
    return frozenset(zlib.crc32(run.encode("utf-8", "surrogatepass")) for run in runs)


def similarity(
    one: frozenset[int] | frozenset[str], other: frozenset[int] | frozenset[str]
) -> float:
    """Return the Jaccard similarity in [0, 1]; two empty sets are equal."""
    either = len(one | other)
    return len(one & other) / either if either else 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Signatures:
    """MinHash signatures of numbered texts; they hold no words."""

    bytes: np.ndarray
    """Lowest byte of each value, (texts, k) uint8."""
    keys: np.ndarray
    """Hash of each band, (texts, bands) uint32."""


def sign_texts(texts: Iterable[Shingles], number: int, threshold: float) -> Signatures:
    """Compute the signatures of ``number`` texts, for a threshold in (0, 1]."""
    rows = band_rows(threshold)
    random = np.random.default_rng(61)  # a fixed seed: every machine finds the same candidates
    factors = random.integers(1, 1 << 63, (HASHES, 1), dtype=np.uint64) | np.uint64(1)
    mixing = random.integers(1, 1 << 63, rows, dtype=np.uint64) | np.uint64(1)
    low = np.empty((number, HASHES), dtype=np.uint8)
    keys = np.empty((number, HASHES // rows), dtype=np.uint32)
    for place, text in enumerate(texts):
        hashes = _scatter(np.fromiter(text, dtype=np.uint64, count=len(text)))
        values = (hashes * factors).min(axis=1) >> np.uint64(16)  # products mod 2^64
        low[place] = values.astype(np.uint8)
        bands = (values.reshape(-1, rows) * mixing).sum(axis=1, dtype=np.uint64)
        keys[place] = (bands >> np.uint64(32)).astype(np.uint32)
    return Signatures(bytes=low, keys=keys)


def band_rows(threshold: float) -> int:
    """Return the largest band size r that misses at most ``MISSED`` of pairs at the threshold."""
    for rows in (8, 4, 2):
        if (1 - threshold**rows) ** (HASHES // rows) <= MISSED:
            return rows
    return 1


@dataclass(slots=True, kw_only=True)
class Index:
    """Index of added texts by band key."""

    threshold: float
    _buckets: dict[int, list[int]] = field(default_factory=dict)

    def add(self, place: int, keys: np.ndarray) -> None:
        """Add the text ``place`` under its keys; see :func:`number_bands`."""
        for key in keys.tolist():
            self._buckets.setdefault(key, []).append(place)

    def candidates(self, keys: np.ndarray, low: np.ndarray, known: Signatures) -> list[int]:
        """Return added texts that may be as similar as the threshold, in ascending order.

        Args:
            keys: Numbered band keys of the text in question.
            low: Its lowest bytes, (k,).
            known: Signatures of the added texts.
        """
        found: set[int] = set()
        for key in keys.tolist():
            found.update(self._buckets.get(key, ()))
        if not found:
            return []
        places = np.array(sorted(found))
        agreeing = (known.bytes[places] == low).mean(axis=1)
        # bytes agree by chance once in 256; five standard deviations below that and two values
        expected = self.threshold + (1 - self.threshold) / 256
        slack = 5 * np.sqrt(expected * (1 - expected) / HASHES) + 2 / HASHES
        likely: list[int] = places[agreeing >= expected - slack].tolist()
        return likely


def number_bands(keys: np.ndarray) -> np.ndarray:
    """Make band keys distinct between bands, as uint64: band number above, key below."""
    bands = np.arange(keys.shape[-1], dtype=np.uint64) << np.uint64(32)
    found: np.ndarray = keys.astype(np.uint64) | bands
    return found


def shared_keys(keys: np.ndarray) -> np.ndarray:
    """Return which keys of (texts, bands) another text shares: others give no candidate."""
    found = np.empty(keys.shape, dtype=bool)
    for band in range(keys.shape[1]):
        _, inverse, counts = np.unique(keys[:, band], return_inverse=True, return_counts=True)
        found[:, band] = counts[inverse] > 1
    return found


def _scatter(hashes: np.ndarray) -> np.ndarray:
    """Spread 32-bit hashes over 64 bits: the mixing steps of SplitMix64 (Steele et al., 2014)."""
    mixed = (hashes + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    scattered: np.ndarray = mixed ^ (mixed >> np.uint64(31))
    return scattered
