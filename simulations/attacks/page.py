"""The attack table: honest loss with and without the liar, open and guarded, and a verdict."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fedwinnow.curation.scores.bootstrap import paired_bootstrap
from fedwinnow.curation.seeds import derive_seed
from fedwinnow.simulations.attacks.attacked_federation import LIAR

Tree = dict[str, Any]
BOUND = 0.05
"""Largest rise of the honest loss, as a share of the loss without the liar."""


def compare(rows: Sequence[Tree]) -> list[Tree]:
    """One row a threshold rule and attack, against the open run of the honest sites alone.

    The first row of a rule, with the attack "", is what guards cost where nobody lies. Differences
    are paired over the items of all seeds.
    """
    table = []
    for rule in dict.fromkeys(row["rule"] for row in rows):
        here = [row for row in rows if row["rule"] == rule]
        honest = _losses(here, "", guarded=False)
        for attack in dict.fromkeys(row["attack"] for row in here):
            sides = {
                name: _side(here, attack, honest, guarded=guarded)
                for name, guarded in (("open", False), ("guarded", True))
            }
            table.append(
                {"rule": rule, "attack": attack, "loss": float(honest.mean())}
                | sides
                | {"verdict": _verdict(sides["open"], sides["guarded"])}
            )
    return table


def _side(rows: Sequence[Tree], attack: str, honest: np.ndarray, *, guarded: bool) -> Tree:
    """An attack's figures without or with guards, over all seeds."""
    mine = [row for row in rows if row["attack"] == attack and row["guarded"] == guarded]
    alone = [row for row in rows if row["attack"] == "" and not row["guarded"]]
    losses = _losses(rows, attack, guarded=guarded)
    seed = derive_seed(0, "attacks", attack, guarded)
    mean, low, high = paired_bootstrap(losses, honest, seed=seed)
    whole = float(honest.mean())
    return {
        "loss": float(losses.mean()),
        "change": mean / whole,
        "low": low / whole,
        "high": high / whole,
        "weight": float(np.mean([row["weight"] for row in mine])),
        "kept": float(np.mean([row["kept"] for row in mine])),
        "trigger_loss": _mean(mine, "loss"),
        "trigger_loss_alone": _mean(alone, "loss"),
        "trigger_share": _mean(mine, "share"),
        "bounded": {str(row["seed"]): row["bounded"] for row in mine if row["bounded"]},
        "missing": {str(row["seed"]): row["missing"] for row in mine if row["missing"]},
    }


def _losses(rows: Sequence[Tree], attack: str, *, guarded: bool) -> np.ndarray:
    """Losses of the hold-out items of all seeds, in order of seed."""
    mine = [row for row in rows if row["attack"] == attack and row["guarded"] == guarded]
    ordered = sorted(mine, key=lambda row: int(row["seed"]))
    return np.concatenate([np.asarray(row["losses"], dtype=np.float64) for row in ordered])


def _mean(rows: Sequence[Tree], key: str) -> float:
    return float(np.mean([row["trigger"][key] for row in rows]))


def _verdict(bare: Tree, guarded: Tree) -> str:
    """Whether the honest loss stays within the bound; the interval says how sure that is."""
    if guarded["change"] > BOUND:
        return "not held"
    unsure = " (interval reaches beyond)" if guarded["high"] > BOUND else ""
    return f"{'harmless' if bare['change'] <= BOUND else 'held by guards'}{unsure}"


def page(result: Tree) -> str:
    """Markdown: the verdict, the table, what the back door learnt, what the guards did."""
    table = result["table"]
    lines = [
        "# Attacks",
        "",
        (
            f"{result['bed']} Losses: nats a token on clean public hold-out answers, mean over "
            "items. Changes are against the honest sites alone, without guards: paired over the "
            "items of all seeds, "
            "95 % bootstrap interval. How to read it and what to set: "
            "[../merging.md](../merging.md)."
        ),
        "",
        (
            f"Command: `{result['command']}`. Machine: {result['machine']}. Seeds: "
            f"{', '.join(map(str, result['seeds']))}; the settings of guards and training were "
            f"chosen on seed 0. Commit: {result['commit'] or 'unknown'}."
        ),
        "",
        *_verdicts(table),
        *_attack_table(table),
        *_abouts(result["attacks"]),
        *_triggers(table),
        *_guards(table),
    ]
    return "\n".join(lines).rstrip() + "\n"


def _verdicts(table: Sequence[Tree]) -> list[str]:
    lines = []
    for rule in dict.fromkeys(row["rule"] for row in table):
        here = [row for row in table if row["rule"] == rule and row["attack"]]
        held = [row["attack"] for row in here if row["verdict"] != "not held"]
        lost = [row["attack"] for row in here if row["verdict"] == "not held"]
        lines += [
            (
                f"**Verdict, threshold `{rule}`:** with guards the honest loss stays within "
                f"{BOUND:.0%} under {_names(held)}"
                + (f"; not under {_names(lost)}." if lost else ": every attack that was tried.")
            ),
            "",
        ]
    return lines


def _names(names: Sequence[str]) -> str:
    return ", ".join(f"`{name}`" for name in names) or "none"


def _attack_table(table: Sequence[Tree]) -> list[str]:
    lines = []
    for rule in dict.fromkeys(row["rule"] for row in table):
        here = [row for row in table if row["rule"] == rule]
        lines += [
            f"## Threshold `{rule}`: {here[0]['loss']:.4f} nats without the liar",
            "",
            (
                "| attack | no guards: loss | change | guards: loss | change | liar's weight | "
                "honest kept | verdict |"
            ),
            "|" + " --- |" * 8,
        ]
        for row in here:
            bare, guarded = row["open"], row["guarded"]
            cells = [
                f"`{row['attack']}`" if row["attack"] else "nobody lies",
                f"{bare['loss']:.4f}",
                _change(bare),
                f"{guarded['loss']:.4f}",
                _change(guarded),
                f"{bare['weight']:.2f} → {guarded['weight']:.2f}",
                f"{bare['kept']:.0%} → {guarded['kept']:.0%}",
                row["verdict"] if row["attack"] else "what guards cost",
            ]
            lines.append("| " + " | ".join(cells) + " |")
        lines.append("")
    return [
        *lines,
        "Arrows: without guards → with them. Kept: share of the honest sites' samples.",
        "",
    ]


def _change(side: Tree) -> str:
    return f"{side['change']:+.1%} [{side['low']:+.1%}, {side['high']:+.1%}]"


def _abouts(attacks: Mapping[str, str]) -> list[str]:
    return [
        "## The zoo",
        "",
        *(f"- `{name}`: {about}." for name, about in attacks.items()),
        "",
    ]


def _triggers(table: Sequence[Tree]) -> list[str]:
    """What the planted answers came to."""
    mine = [row for row in table if row["attack"] in {"back_door", "poisoned_data"}]
    if not mine:
        return []
    lines = [
        "## What the trigger brings out",
        "",
        (
            "Public hold-out prompts behind the trigger: mean loss of the planted answer (nats a "
            "token), and how many greedy answers are the planted one."
        ),
        "",
        (
            "| attack | loss, nobody lies | loss, no guards | loss, guards | answers, no guards | "
            "answers, guards |"
        ),
        "|" + " --- |" * 6,
    ]
    for row in mine:
        bare, guarded = row["open"], row["guarded"]
        losses = (bare["trigger_loss_alone"], bare["trigger_loss"], guarded["trigger_loss"])
        cells = [f"`{row['attack']}`", *(f"{loss:.2f}" for loss in losses)]
        cells += [f"{side['trigger_share']:.0%}" for side in (bare, guarded)]
        lines.append("| " + " | ".join(cells) + " |")
    return [*lines, ""]


def _guards(table: Sequence[Tree]) -> list[str]:
    """How often the guards bounded the liar and honest sites, and whom the server refused."""
    lines = [
        "## Who was bounded, and why",
        "",
        (
            "Rounds in which the guards bounded the liar, and rounds of honest sites, over all "
            "seeds; the first reason that was given. Every single one is in `attacks.json`."
        ),
        "",
        "| threshold | attack | the liar | why | honest sites | why |",
        "|" + " --- |" * 6,
    ]
    refused = []
    for row in table:
        name = f"`{row['attack']}`" if row["attack"] else "nobody lies"
        cells = [f"`{row['rule']}`", name]
        for liar in (True, False):
            said = [
                one
                for sites in row["guarded"]["bounded"].values()
                for site, rounds in sorted(sites.items())
                if (site == LIAR) == liar
                for one in rounds
            ]
            cells += [str(len(said)), f"the first: {said[0]['why']}" if said else "–"]
        lines.append("| " + " | ".join(cells) + " |")
        for side in ("open", "guarded"):
            for seed, sites in row[side]["missing"].items():
                for site, why in sorted(sites.items()):
                    refused.append(f"- {name}, {side}, seed {seed}, {site}: refused, {why}")
    return [*lines, "", *refused, ""]
