"""Plant noise for studies: make the silos' own bad data by other means than the calibration's.

The kinds have the calibration's names, but other code, strengths and words: swapped
answers rotate through the silo, cuts keep 20–50 % of the characters up to a word's end, deletions
take 40 % of the words in runs, substitutes come from a fixed list of everyday words, noise shuffles
the letters inside words, and a wrong domain's answer is chosen by the hash of the sample.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from fedwinnow.curation.datatypes import Sample
from fedwinnow.curation.errors import ConfigError, DataError
from fedwinnow.curation.seeds import derive_seed

_ATTEMPTS = 100
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
    samples: Sequence[Sample],
    *,
    share: float,
    kinds: Sequence[str],
    seed: int,
    foreign: Sequence[Sample] = (),
) -> list[Sample]:
    """Corrupt exactly ``round(share · n)`` samples, the kinds in equal parts.

    Args:
        samples: Clean samples of one silo.
        share: Share to corrupt, in [0, 1].
        kinds: Names among ``KINDS``.
        seed: Seed of the choice.
        foreign: Held-back samples of other domains, for ``wrong_domain`` in a silo of one domain.

    Returns:
        The silo in its order, each sample with ``labels["corruption"]``: "clean" or the kind.

    Raises:
        ConfigError: the share is out of range, or a kind is unknown.
        DataError: a kind cannot be made from these samples.
    """
    unknown = sorted(set(kinds) - set(KINDS))
    number = round(share * len(samples)) if 0 <= share <= 1 else -1
    if unknown or number < 0 or (number > 0 and not kinds):
        message = (
            f"planted noise: expected a share in [0, 1] and kinds among {', '.join(KINDS)}, got "
            f"{share} and {', '.join(kinds) or 'no kind'}; change share or kinds"
        )
        raise ConfigError(message)
    random = np.random.default_rng(derive_seed(seed, "planted", *(s.id for s in samples[:1])))
    chosen = random.permutation(len(samples))[:number]
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
        elif kind == "wrong_domain":
            response = _foreign_answer(sample, [*samples, *foreign], seed)
        else:
            response = _changed(sample, kind, random)
        planted.append(_labelled(sample, response, kind))
    return planted


def _other_answer(samples: Sequence[Sample], swaps: Sequence[int], place: int) -> str:
    """Return the next swapped sample's answer; a single swapped sample takes its neighbour's."""
    own = samples[place]
    following = swaps[(swaps.index(place) + 1) % len(swaps)]
    for step in range(len(samples)):
        other = samples[(following + step) % len(samples)]
        if (
            other.domain == own.domain
            and other.response.split() not in ([], own.response.split())
            and other.prompt != own.prompt
        ):
            return other.response
    message = (
        f"planted noise: swap needs two samples of domain {own.domain!r} with different prompts "
        "and answers; give a larger silo or leave swap out"
    )
    raise DataError(message)


def _foreign_answer(sample: Sample, among: Sequence[Sample], seed: int) -> str:
    others = [s.response for s in among if s.domain != sample.domain and s.response.split()]
    if not others:
        message = (
            f"planted noise: wrong_domain needs samples of another domain than {sample.domain!r}; "
            "give some in foreign or leave wrong_domain out"
        )
        raise DataError(message)
    return others[derive_seed(seed, "foreign", sample.id) % len(others)]


def _changed(sample: Sample, kind: str, random: np.random.Generator) -> str:
    """Return the corrupted response; a draw that leaves the words unchanged is drawn again."""
    words = sample.response.split()
    for _ in range(_ATTEMPTS if words else 0):
        response = KINDS[kind](words, random)
        if response.split() not in ([], words):
            return response
    message = (
        f"planted noise: {kind} leaves sample {sample.id[:12]} of {len(words)} words as it is; "
        "give longer answers or leave the kind out"
    )
    raise DataError(message)


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
    "swap": lambda words, _random: " ".join(words),  # taken from the other samples at hand
    "wrong_domain": lambda words, _random: " ".join(words),  # likewise
    "cut": _cut,
    "delete": _delete,
    "substitute": _substitute,
    "noise": _noise,
}
"""Name → function that makes a planted response from the words of a clean one."""
