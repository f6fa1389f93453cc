"""Laws of the generated skills: every answer follows from its prompt, and a seed says which."""

import json
import random
import re

import pytest

from fedwinnow.curation.errors import DataError
from fedwinnow.simulations.datasets.demo_texts import Silo
from fedwinnow.simulations.datasets.skills import SKILLS, build_skills, draw_pairs, pair

KINDS = ("swap", "cut", "delete", "substitute", "noise")


def solved(domain, prompt):
    """What the answer must hold, worked out from the prompt alone by other means."""
    if domain == "sums":
        words = prompt.replace("plus", "+").replace("minus", "-").replace("?", " ")
        first, one, second, two, third = re.findall(r"\d+|[+-]", words)[:5]
        middle = int(first) + int(one + second)
        return [str(middle), str(middle + int(two + third))]
    if domain == "lists":
        words = prompt.rstrip(".").split(", ")
        head, tail = words[0].split()[-1], words[-1].split()[0]
        return [", ".join([tail, *reversed(words[1:-1]), head])]
    asked = prompt.rstrip("?.").split()[-1]
    (fact,) = re.findall(rf"{asked} (?:has|holds) \d+ \w+\.", prompt)
    return [fact]


@pytest.mark.parametrize("manner", ["plain", "house"])
@pytest.mark.parametrize("domain", sorted(SKILLS))
def test_skill_answers_follow_from_their_prompts(domain, manner):
    """200 tasks: the answer holds what a solver of its own finds in the prompt."""
    draw = random.Random(7)  # noqa: S311 - a test's draw
    for _ in range(200):
        prompt, response = pair(domain, manner, draw)
        for part in solved(domain, prompt):
            assert part in response


def test_skill_draws_are_a_function_of_the_seed():
    """Equal seeds give equal tasks, other seeds other ones; prompts differ."""
    one, two, other = (draw_pairs("sums", size=50, seed=seed) for seed in (0, 0, 1))
    assert one == two
    assert one != other
    assert len({sample.prompt for sample in one}) == 50


def test_skill_draw_of_too_many_or_of_an_unknown_domain_is_an_error():
    """There are so many sums and no more; an unknown domain lists the known ones."""
    with pytest.raises(DataError, match="ask for fewer"):
        draw_pairs("sums", size=10**5, seed=0)
    with pytest.raises(DataError, match="sums, lists, records"):
        draw_pairs("cooking", size=1, seed=0)


def test_skill_silos_hold_what_they_say_and_share_nothing(tmp_path):
    """Counts by domain, share of bad ones, clean anchors of every domain, no prompt twice."""
    silos = (
        Silo(name="a", domain="sums", samples=30, bad=0.5),
        Silo(name="b", domain="records+lists", samples=20, bad=0.0, shares=(0.9, 0.1)),
    )
    data = build_skills(tmp_path, seed=3, silos=silos, anchors=10, kinds=KINDS)
    rows = {
        name: [json.loads(line) for line in path.read_text().splitlines()]
        for name, path in {**data.silos, "anchors": data.anchors}.items()
    }
    assert sum(row["corruption"] != "clean" for row in rows["a"]) == 15
    assert {row["corruption"] for row in rows["a"]} == {*KINDS, "clean"}
    assert [sum(row["domain"] == name for row in rows["b"]) for name in ("records", "lists")] == [
        18,
        2,
    ]
    assert {row["corruption"] for row in rows["b"] + rows["anchors"]} == {"clean"}
    domains = [row["domain"] for row in rows["anchors"]]
    assert {name: domains.count(name) for name in SKILLS} == dict.fromkeys(SKILLS, 10)
    prompts = [row["prompt"] for part in rows.values() for row in part]
    assert len(set(prompts)) == len(prompts)
    again = build_skills(tmp_path / "again", seed=3, silos=silos, anchors=10, kinds=KINDS)
    assert again.silos["a"].read_bytes() == data.silos["a"].read_bytes()
