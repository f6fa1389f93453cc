"""Planted noise for studies: the silos' own bad data, made by other means than the calibration's.

The kinds bear the calibration's names, but code, strengths and words are others: swapped
answers rotate through the silo, cuts keep 20–50 % of the characters up to a word's end, deletions
take 40 % of the words in runs, substitutes come from a fixed list of everyday words, and noise
shuffles the letters inside words.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from fedwinnow.curation.errors import ConfigError
from fedwinnow.curation.nouns import Sample
from fedwinnow.curation.seeds import derive_seed

EVERYDAY = [
    "window",
    "river",
    "orange",
    "mountain",
    "slowly",
    "kitchen",
    "violin",
    "garden",
    "purple",
    "umbrella",
    "tomorrow",
    "sandwich",
    "bicycle",
    "thunder",
    "pillow",
    "quietly",
    "marble",
    "forest",
    "ticket",
    "candle",
    "harbour",
    "winter",
    "lemon",
    "carpet",
    "whistle",
    "feather",
    "station",
    "butterfly",
    "dinner",
    "yellow",
    "basket",
    "cloud",
    "Tuesday",
    "engine",
    "sleepy",
    "bridge",
    "coconut",
    "mirror",
    "dancing",
    "pencil",
    "island",
    "grateful",
    "rocket",
    "blanket",
    "silver",
    "pepper",
    "orchestra",
    "laughing",
]
"""Words that no calibration uses."""


def plant(
    samples: Sequence[Sample], *, share: float, kinds: Sequence[str], seed: int
) -> list[Sample]:
    """Corrupt exactly ``round(share · n)`` samples, the kinds in equal parts.

    Args:
        samples: Clean samples of one silo.
        share: Share to corrupt, in [0, 1].
        kinds: Names among ``KINDS``.
        seed: Of the choice.

    Returns:
        The silo in its order, each sample with ``labels["corruption"]``: "clean" or the kind.

    Raises:
        ConfigError: the share is out of range, a kind is unknown, or the silo is too small to swap.
    """
    unknown = sorted(set(kinds) - set(KINDS))
    if unknown or not 0 <= share <= 1:
        message = (
            f"planted noise: expected a share in [0, 1] and kinds among {', '.join(KINDS)}, got "
            f"{share} and {', '.join(kinds)}"
        )
        raise ConfigError(message)
    random = np.random.default_rng(derive_seed(seed, "planted", *(s.id for s in samples[:1])))
    chosen = random.permutation(len(samples))[: round(share * len(samples))]
    turn = random.permutation(len(kinds)) if kinds else np.zeros(0, dtype=np.int64)
    plan = {int(place): kinds[turn[i % len(kinds)]] for i, place in enumerate(chosen)}
    swaps = sorted(place for place, kind in plan.items() if kind == "swap")
    planted = []
    for place, sample in enumerate(samples):
        kind = plan.get(place, "clean")
        if kind == "clean":
            response = sample.response
        elif kind == "swap":
            response = _other_answer(samples, swaps, place)
        else:
            response = KINDS[kind](sample.response.split(), random)
        planted.append(_labelled(sample, response, kind))
    return planted


def _other_answer(samples: Sequence[Sample], swaps: Sequence[int], place: int) -> str:
    """The next swapped sample's answer; a single one takes its neighbour's."""
    following = swaps[(swaps.index(place) + 1) % len(swaps)]
    for step in range(len(samples)):
        other = samples[(following + step) % len(samples)]
        if other.response != samples[place].response and other.prompt != samples[place].prompt:
            return other.response
    message = "planted noise: swap needs two samples with different answers; give a larger silo"
    raise ConfigError(message)


def _cut(words: Sequence[str], random: np.random.Generator) -> str:
    text = " ".join(words)
    size = int(len(text) * random.uniform(0.2, 0.5))
    return text[:size].rsplit(" ", 1)[0] or words[0]


def _delete(words: Sequence[str], random: np.random.Generator) -> str:
    left, goal = list(words), max(1, round(0.6 * len(words)))
    while len(left) > goal:
        run = int(random.integers(1, 4))
        start = int(random.integers(0, len(left)))
        del left[start : start + min(run, len(left) - goal)]
    return " ".join(left)


def _substitute(words: Sequence[str], random: np.random.Generator) -> str:
    changed = random.permutation(len(words))[: max(1, round(0.4 * len(words)))]
    new = list(words)
    for place in changed:
        new[place] = EVERYDAY[int(random.integers(len(EVERYDAY)))]
    return " ".join(new)


def _noise(words: Sequence[str], random: np.random.Generator) -> str:
    new = list(words)
    for place in random.permutation(len(words))[: max(1, round(0.4 * len(words)))]:
        letters = list(new[place])
        inner = letters[1:] if len(letters) > 2 else letters  # noqa: PLR2004 - the first letter stays in words of three
        mixed = [inner[i] for i in random.permutation(len(inner))]
        new[place] = "".join([*letters[: len(letters) - len(inner)], *mixed])
    return " ".join(new)


def _labelled(sample: Sample, response: str, kind: str) -> Sample:
    labels = {**sample.labels, "corruption": kind}
    if kind == "clean":
        return replace(sample, labels=labels)
    identity = hashlib.sha256(f"{sample.id} {kind} {response}".encode()).hexdigest()[:32]
    return replace(sample, id=identity, response=response, labels=labels)


KINDS: Mapping[str, Callable[[Sequence[str], np.random.Generator], str]] = {
    "swap": lambda words, _random: " ".join(words),  # answered with the other samples at hand
    "cut": _cut,
    "delete": _delete,
    "substitute": _substitute,
    "noise": _noise,
}
"""Name → how a planted response is made from the words of a clean one."""
