"""Find pairs of a prompt and a passage on the same matter by the rare words that they share.

A run is one or more whole sentences in a row. With n_w of N sources holding the stem w, a prompt
and a run share Σ_w log(N / n_w) nats over their common stems; the run that shares most is chosen.

Reference:
    Inverse document frequency: Spärck Jones, Journal of Documentation 28, 1972.
"""

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence

WORDS = (20, 42)
"""Fewest and most words of a run."""
PROMPT_WORDS = (6, 26)
"""Fewest and most words of a prompt."""
SHARED = 8.0
"""Least sum that a pair must share, nats."""
_SPLIT = re.compile(r"(?<=[.!?])[\"”)]?\s+(?=[\"“(]?[A-Z0-9])")
_ABBREVIATION = re.compile(
    r"\b(?:[A-Z]|vs?|[Nn]os?|e\.g|i\.e|[Ii]nc|[Cc]o|[Cc]orp|[Dd]r|[Mm]rs?|[Ss]t|[Ff]ig|et al|[Ss]ec"
    r"|approx|[Aa]rt|Jan|Feb|Aug|Sept?|Oct|Nov|Dec|[Ss]upp|Cir|App|Ed|Ct|Cal|Stat)\.$"
)


def sentences(text: str) -> list[str]:
    """Split a text at sentence ends, leaving abbreviations whole."""
    parts: list[str] = []
    for piece in _SPLIT.split(" ".join(text.split())):
        if parts and _ABBREVIATION.search(parts[-1]):
            parts[-1] = f"{parts[-1]} {piece}"
        else:
            parts.append(piece)
    return parts


def stems(text: str) -> frozenset[str]:
    """Return the words of four letters or more in a text, cut to their first six letters."""
    return frozenset(word[:6] for word in re.findall(r"[a-z]{4,}", text.lower()))


def rarity_of(sources: Sequence[tuple[str, str]]) -> dict[str, float]:
    """Return stem → log(sources / sources that hold it), in nats."""
    held: dict[str, int] = {}
    for question, text in sources:
        for stem in stems(f"{question} {text}"):
            held[stem] = held.get(stem, 0) + 1
    return {stem: math.log(len(sources) / n) for stem, n in held.items()}


def best_pair(
    prompts: Sequence[str],
    text: str,
    *,
    rarity: Mapping[str, float],
    copy: float,
    fits: Callable[[str, str], bool],
) -> tuple[str, str] | None:
    """Return the prompt and the run of ``text`` that share most, or None if no pair is fit.

    Args:
        prompts: Candidates.
        text: Text that holds the answer; no run crosses a line break.
        rarity: See :func:`rarity_of`.
        copy: Largest share of common stems, of the side with fewer stems, in (0, 1].
        fits: Whether a pair is short enough.
    """
    low, high = PROMPT_WORDS
    prompts = [prompt for prompt in prompts if low <= len(prompt.split()) <= high]
    found: list[tuple[float, int, str, str]] = []
    for line in text.splitlines():
        for run in _runs(sentences(line)):
            run_stems = stems(run)
            for prompt in prompts:
                prompt_stems = stems(prompt)
                common = run_stems & prompt_stems
                shared = math.fsum(rarity[stem] for stem in common)
                fewest = min(len(run_stems), len(prompt_stems))
                if shared >= SHARED and len(common) <= copy * fewest:
                    found.append((-shared, len(found), prompt, run))
    for _, _, prompt, run in sorted(found):
        if fits(prompt, run):
            return prompt, run
    return None


def _runs(parts: Sequence[str]) -> Iterator[str]:
    """Yield every run of whole sentences with the allowed number of words."""
    low, high = WORDS
    for start in range(len(parts)):
        run = ""
        for part in parts[start:]:
            run = f"{run} {part}".strip()
            size = len(run.split())
            if size > high:
                break
            if size >= low and run[-1] in ".!?" and not run[0].islower():
                yield run
