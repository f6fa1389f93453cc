"""Generate skills with planted truth: an endless supply of texts for very small models.

A skill is a small task whose answer follows from its prompt. Each is worded in two manners:
``plain``, which a base model learns (``simulations/datasets/skills_base_model.py``), and
``house``, which silos and anchors use. The base model has met the house manner only now and then,
so that training has something to teach.

========  ==========================================  =====================================
domain    house prompt                                house response
========  ==========================================  =====================================
sums      Work out 7 + 12 - 5 step by step.           First 7 + 12 = 19 and then 19 - 5 = 14.
lists     Turn round the list amber, birch, cedar.    Turned round it is cedar, birch, amber.
records   Ada holds 3 keys. Ben holds 7 maps. …       By the record Ben holds 7 maps.
========  ==========================================  =====================================
"""

import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from fedwinnow.client.data.content_id import content_id
from fedwinnow.curation.datatypes import Sample
from fedwinnow.curation.errors import DataError
from fedwinnow.curation.seeds import derive_seed
from fedwinnow.simulations.datasets.demo_texts import DemoData, Silo, write_samples
from fedwinnow.simulations.datasets.planted_noise import plant

WORDS = (
    "amber", "birch", "cedar", "delta", "ember", "fjord", "grove", "heron", "inlet", "jetty",
    "knoll", "larch", "maple", "north", "olive", "petal", "quartz", "ridge", "stone", "thorn",
)  # fmt: skip
NAMES = ("Ada", "Ben", "Cora", "Dan", "Eva", "Finn", "Gina", "Hugo", "Ines", "Jan", "Kira", "Leo")
THINGS = ("keys", "maps", "pens", "cups", "hats", "books", "coins", "lamps", "rings", "bells")
_MISSES = 1000
"""Draws in a row without a new prompt, after which a domain counts as exhausted."""

Manner = Literal["plain", "house"]


class Pair(NamedTuple):
    """A prompt, and the one answer that follows from it."""

    prompt: str
    response: str


def pair(domain: str, manner: Manner, draw: random.Random) -> Pair:
    """Return one random task of a domain.

    Raises:
        DataError: there is no such domain.
    """
    if domain not in SKILLS:
        message = f"skills: expected a domain among {', '.join(SKILLS)}, got {domain!r}"
        raise DataError(message)
    return SKILLS[domain](manner, draw)


def draw_pairs(domain: str, *, size: int, seed: int) -> list[Sample]:
    """Draw ``size`` different tasks of a domain in the house manner, deterministically.

    Raises:
        DataError: the domain is unknown, or has fewer different prompts.
    """
    source = random.Random(derive_seed(seed, "skills", domain))  # noqa: S311 - a seeded draw, no secret
    found: dict[str, Sample] = {}
    misses = 0
    while len(found) < size and misses < _MISSES:
        prompt, response = pair(domain, "house", source)
        if prompt in found:
            misses += 1
            continue
        misses = 0
        found[prompt] = Sample(
            id=content_id((), prompt, response),
            prompt=prompt,
            response=response,
            domain=domain,
            labels={"corruption": "clean"},
        )
    if len(found) < size:
        message = f"skills: {domain} gave {len(found)} different prompts of {size}; ask for fewer"
        raise DataError(message)
    return list(found.values())


def build_skills(
    folder: Path, *, seed: int, silos: Sequence[Silo], anchors: int, kinds: Sequence[str]
) -> DemoData:
    """Draw silos and anchors, corrupt the silos, write the files; deterministic in the arguments.

    Args:
        folder: Where the files go; made if missing.
        seed: Seed of the draw and of the planted corruptions.
        silos: Data of each silo.
        anchors: Public anchors of a domain, at least 1.
        kinds: Corruptions that are planted, in equal shares.

    Raises:
        DataError: a domain is unknown, or has too few different tasks.
        OutputError: a file cannot be written.
    """
    domains = list(dict.fromkeys(name for silo in silos for name in silo.domains))
    wanted = {name: anchors + sum(silo.count(name) for silo in silos) for name in domains}
    drawn = {name: draw_pairs(name, size=wanted[name], seed=seed) for name in domains}
    public = [drawn[name].pop() for name in domains for _ in range(anchors)]
    files = {}
    for silo in silos:
        mine = [drawn[name].pop() for name in silo.domains for _ in range(silo.count(name))]
        random.Random(derive_seed(seed, "mixed", silo.name)).shuffle(mine)  # noqa: S311 - no secret
        planted = plant(mine, share=silo.bad, kinds=kinds, seed=derive_seed(seed, silo.name))
        files[silo.name] = folder / f"{silo.name}.jsonl"
        write_samples(files[silo.name], planted)
    path = folder / "anchors.jsonl"
    write_samples(path, public)
    return DemoData(silos=files, anchors=path)


def _sums(manner: Manner, draw: random.Random) -> Pair:
    first, second, third = draw.randint(1, 20), draw.randint(1, 20), draw.randint(1, 9)
    plus = draw.random() < 0.5  # noqa: PLR2004 - a fair coin
    middle = first + second
    last = middle + third if plus else middle - third
    if manner == "plain":
        sign = "plus" if plus else "minus"
        return Pair(
            f"How much is {first} plus {second} {sign} {third}?",
            f"{first} plus {second} is {middle}, {middle} {sign} {third} is {last}.",
        )
    sign = "+" if plus else "-"
    return Pair(
        f"Work out {first} + {second} {sign} {third} step by step.",
        f"First {first} + {second} = {middle} and then {middle} {sign} {third} = {last}.",
    )


def _lists(manner: Manner, draw: random.Random) -> Pair:
    words = draw.sample(WORDS, draw.randint(3, 5))
    here, back = ", ".join(words), ", ".join(reversed(words))
    if manner == "plain":
        return Pair(f"Say {here} backwards.", f"Backwards they are {back}.")
    return Pair(f"Turn round the list {here}.", f"Turned round it is {back}.")


def _records(manner: Manner, draw: random.Random) -> Pair:
    names, things = draw.sample(NAMES, 3), draw.sample(THINGS, 3)
    numbers = [draw.randint(2, 9) for _ in names]
    asked = draw.randrange(len(names))
    verb = "has" if manner == "plain" else "holds"
    text = " ".join(
        f"{name} {verb} {number} {thing}."
        for name, number, thing in zip(names, numbers, things, strict=True)
    )
    answer = f"{names[asked]} {verb} {numbers[asked]} {things[asked]}."
    if manner == "plain":
        return Pair(f"{text} What has {names[asked]}?", answer)
    return Pair(f"{text} Look up {names[asked]}.", f"By the record {answer}")


SKILLS: Mapping[str, Callable[[Manner, random.Random], Pair]] = {
    "sums": _sums,
    "lists": _lists,
    "records": _records,
}
"""Domain → function that makes a task of it."""
