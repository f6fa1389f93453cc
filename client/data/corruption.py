"""Corrupt clean samples with a seed, as examples of bad data for calibration.

===========  ====================================================================
kind         what happens to the response
===========  ====================================================================
swap         another sample's response, of the same domain
cut          only its first 20 to 60 % of words
delete       25 to 50 % of its words are left out
substitute   25 to 50 % of its words become words of other responses
noise        characters of 25 to 45 % of its words are swapped, dropped or replaced
wrong_domain a response of another domain
===========  ====================================================================

Line breaks and blanks stay where they were, so that white space never tells a copy from its parent.
Studies plant their noise by other code, strengths and vocabulary
(``simulations/datasets/planted_noise.py``).

Reference:
    The kinds follow CLUES (Z. Zhao et al., NeurIPS 2024, table 6, https://arxiv.org/abs/2507.03004)
    and FedDQC (Y. Du et al., Findings of ACL 2025, https://arxiv.org/abs/2410.11540).
"""

import hashlib
import json
import random
import re
import string
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from fedwinnow.curation.datatypes import Sample
from fedwinnow.curation.errors import DataError

_ATTEMPTS = 20


def corrupt(sample: Sample, kind: str, *, pool: Sequence[Sample], seed: int) -> Sample:
    """Return a corrupted copy, whose response always differs from the sample's.

    Args:
        sample: Clean sample.
        kind: One of ``KINDS``.
        pool: Clean samples that swapped answers and words are taken from.
        seed: Seed of the choice; equal arguments give an equal copy.

    Returns:
        A sample with a new id, the kind noted in ``labels["corruption"]``.

    Raises:
        DataError: the kind is unknown, or cannot be made: no other response in the pool, no other
            domain, or a response too short to change.
    """
    if kind not in KINDS:
        message = f"anchors.corruptions: kind {kind!r} is unknown; choose from {', '.join(KINDS)}"
        raise DataError(message)
    for attempt in range(_ATTEMPTS):
        source = random.Random(f"{seed} {kind} {attempt}")  # noqa: S311 - a seeded draw, no secret
        response = KINDS[kind](sample, pool, source)
        if response.split() not in ([], sample.response.split()):
            text = json.dumps([sample.id, kind, response])
            return replace(
                sample,
                id=hashlib.sha256(text.encode()).hexdigest()[:32],
                response=response,
                labels={**sample.labels, "corruption": kind},
            )
    message = (
        f"anchors: {kind} cannot be made from anchor {sample.id[:12]} of domain {sample.domain!r}: "
        f"it needs {_NEEDS[kind]}; add such anchors, or leave {kind} out of anchors.corruptions"
    )
    raise DataError(message)


def _swap(sample: Sample, pool: Sequence[Sample], source: random.Random) -> str:
    others = [
        one.response for one in pool if one.domain == sample.domain and one.prompt != sample.prompt
    ]
    return source.choice(others) if others else ""


def _wrong_domain(sample: Sample, pool: Sequence[Sample], source: random.Random) -> str:
    others = [one.response for one in pool if one.domain != sample.domain]
    return source.choice(others) if others else ""


def _cut(sample: Sample, _pool: Sequence[Sample], source: random.Random) -> str:
    words = _words(sample.response)
    return _framed(sample, words[: max(1, round(len(words) * source.uniform(0.2, 0.6)))])


def _delete(sample: Sample, _pool: Sequence[Sample], source: random.Random) -> str:
    words = _words(sample.response)
    gone = _some(words, source.uniform(0.25, 0.5), source)
    return _framed(sample, [word for place, word in enumerate(words) if place not in gone])


def _substitute(sample: Sample, pool: Sequence[Sample], source: random.Random) -> str:
    words = _words(sample.response)
    other = [word for one in pool if one.id != sample.id for word in one.response.split()]
    if not other:
        return ""
    changed = _some(words, source.uniform(0.25, 0.5), source)
    return _framed(
        sample,
        [
            (source.choice(other), blank) if place in changed else (word, blank)
            for place, (word, blank) in enumerate(words)
        ],
    )


def _noise(sample: Sample, _pool: Sequence[Sample], source: random.Random) -> str:
    words = _words(sample.response)
    changed = _some(words, source.uniform(0.25, 0.45), source)
    return _framed(
        sample,
        [
            (_garble(word, source), blank) if place in changed else (word, blank)
            for place, (word, blank) in enumerate(words)
        ],
    )


def _garble(word: str, source: random.Random) -> str:
    place = source.randrange(len(word))
    change = source.choice(("swap", "drop", "replace"))
    if change == "swap" and len(word) > 1:
        place = min(place, len(word) - 2)
        return word[:place] + word[place + 1] + word[place] + word[place + 2 :]
    if change == "drop" and len(word) > 1:
        return word[:place] + word[place + 1 :]
    return word[:place] + source.choice(string.ascii_lowercase) + word[place + 1 :]


def _words(text: str) -> list[tuple[str, str]]:
    """Split a text into words, each with the white space after it."""
    return re.findall(r"(\S+)(\s*)", text)


def _framed(sample: Sample, words: Sequence[tuple[str, str]]) -> str:
    """Join words and their white space between the response's outer white space."""
    before, after = re.match(r"\s*", sample.response), re.search(r"\s*$", sample.response)
    text = "".join(word + blank for word, blank in words).rstrip()
    return f"{before.group() if before else ''}{text}{after.group() if after else ''}"


def _some(words: Sequence[object], share: float, source: random.Random) -> frozenset[int]:
    """Draw the positions of a share of the words, at least one."""
    number = min(len(words), max(1, round(share * len(words))))
    return frozenset(source.sample(range(len(words)), number))


KINDS: Mapping[str, Callable[[Sample, Sequence[Sample], random.Random], str]] = {
    "swap": _swap,
    "cut": _cut,
    "delete": _delete,
    "substitute": _substitute,
    "noise": _noise,
    "wrong_domain": _wrong_domain,
}
"""Name → function that makes the corrupted response."""

_NEEDS: Mapping[str, str] = {
    "swap": "another response to another prompt of the same domain",
    "cut": "a response of two words or more",
    "delete": "a response of two words or more",
    "substitute": "a response, and other words in the other responses",
    "noise": "a response with letters to change",
    "wrong_domain": "a response of another domain",
}
"""Name → what the anchors must offer for it."""
