"""Write the attack table: honest loss with and without the liar, open and guarded, verdict."""

from collections.abc import Mapping, Sequence

import numpy as np

from fedwinnow.curation.scores.bootstrap import paired_bootstrap
from fedwinnow.curation.seeds import derive_seed
from fedwinnow.simulations.attacks.attacked_federation import LIAR
from fedwinnow.simulations.attacks.result import AttackLine, AttackResult, AttackRow, AttackSide
from fedwinnow.simulations.studies.markdown import markdown_table

BOUND = 0.05
"""Largest rise of the honest loss, as a share of the loss without the liar."""


def compare_attacks(rows: Sequence[AttackRow]) -> list[AttackLine]:
    """Return one line per threshold rule and attack, against the honest sites alone without guards.

    The first line of a rule, with the attack "", is the cost of guards where nobody lies.
    Differences are paired over the items of all seeds.
    """
    table = []
    for rule in dict.fromkeys(row.case.rule for row in rows):
        here = [row for row in rows if row.case.rule == rule]
        honest = _losses(here, "", guarded=False)
        for attack in dict.fromkeys(row.case.attack for row in here):
            bare = _side(here, attack, honest, guarded=False)
            guarded = _side(here, attack, honest, guarded=True)
            table.append(
                AttackLine(
                    rule=rule,
                    attack=attack,
                    loss=float(honest.mean()),
                    open=bare,
                    guarded=guarded,
                    verdict=_verdict(bare, guarded),
                )
            )
    return table


def _side(
    rows: Sequence[AttackRow], attack: str, honest: np.ndarray, *, guarded: bool
) -> AttackSide:
    mine, alone = _of(rows, attack, guarded=guarded), _of(rows, "", guarded=False)
    losses = _losses(rows, attack, guarded=guarded)
    seed = derive_seed(0, "attacks", attack, guarded)
    mean, low, high = paired_bootstrap(losses, honest, seed=seed)
    whole = float(honest.mean())
    figures = {str(row.case.seed): row.figures for row in mine}
    return AttackSide(
        loss=float(losses.mean()),
        change=mean / whole,
        low=low / whole,
        high=high / whole,
        weight=float(np.mean([row.figures.weight for row in mine])),
        kept=float(np.mean([row.figures.kept for row in mine])),
        trigger_loss=float(np.mean([row.trigger.loss for row in mine])),
        trigger_loss_alone=float(np.mean([row.trigger.loss for row in alone])),
        trigger_share=float(np.mean([row.trigger.share for row in mine])),
        bounded={seed: one.bounded for seed, one in figures.items() if one.bounded},
        missing={seed: one.missing for seed, one in figures.items() if one.missing},
    )


def _of(rows: Sequence[AttackRow], attack: str, *, guarded: bool) -> list[AttackRow]:
    return [row for row in rows if row.case.attack == attack and row.case.guarded == guarded]


def _losses(rows: Sequence[AttackRow], attack: str, *, guarded: bool) -> np.ndarray:
    """Return the losses of the hold-out items of all seeds, in order of seed."""
    ordered = sorted(_of(rows, attack, guarded=guarded), key=lambda row: row.case.seed)
    return np.concatenate([np.asarray(row.figures.losses, dtype=np.float64) for row in ordered])


def _verdict(bare: AttackSide, guarded: AttackSide) -> str:
    """Return whether the honest loss stays within the bound, and whether its interval does."""
    if guarded.change > BOUND:
        return "not held"
    unsure = " (interval reaches beyond)" if guarded.high > BOUND else ""
    return f"{'harmless' if bare.change <= BOUND else 'held by guards'}{unsure}"


def attack_page(result: AttackResult) -> str:
    """Return the Markdown page: verdicts, tables, attacks, learnt triggers, guards' actions."""
    table = result.table
    lines = [
        "# Attacks",
        "",
        (
            f"{result.bed} Losses: nats a token on clean public hold-out answers, mean over "
            "items. Changes are against the honest sites alone, without guards: paired over the "
            "items of all seeds, "
            "95 % bootstrap interval. How to read it and what to set: "
            "[../merging.md](../merging.md)."
        ),
        "",
        (
            f"Command: `{result.command}`. Machine: {result.machine}. Seeds: "
            f"{', '.join(map(str, result.seeds))}; the settings of guards and training were "
            f"chosen on seed 0. Commit: {result.commit or 'unknown'}."
        ),
        "",
        *_verdicts(table),
        *_attack_table(table),
        *_abouts(result.attacks),
        *_triggers(table),
        *_guards(table),
    ]
    return "\n".join(lines).rstrip() + "\n"


def _verdicts(table: Sequence[AttackLine]) -> list[str]:
    lines = []
    for rule in dict.fromkeys(row.rule for row in table):
        here = [row for row in table if row.rule == rule and row.attack]
        held = [row.attack for row in here if row.verdict != "not held"]
        lost = [row.attack for row in here if row.verdict == "not held"]
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


def _attack_table(table: Sequence[AttackLine]) -> list[str]:
    head = ["attack", "no guards: loss", "change", "guards: loss", "change", "liar's weight"]
    lines = []
    for rule in dict.fromkeys(row.rule for row in table):
        here = [row for row in table if row.rule == rule]
        lines += [
            f"## Threshold `{rule}`: {here[0].loss:.4f} nats without the liar",
            "",
            markdown_table([*head, "honest kept", "verdict"], [_attack_cells(row) for row in here]),
            "",
        ]
    return [
        *lines,
        "Arrows: without guards → with them. Kept: share of the honest sites' samples.",
        "",
    ]


def _attack_cells(row: AttackLine) -> list[str]:
    bare, guarded = row.open, row.guarded
    return [
        f"`{row.attack}`" if row.attack else "nobody lies",
        f"{bare.loss:.4f}",
        _change(bare),
        f"{guarded.loss:.4f}",
        _change(guarded),
        f"{bare.weight:.2f} → {guarded.weight:.2f}",
        f"{bare.kept:.0%} → {guarded.kept:.0%}",
        row.verdict if row.attack else "what guards cost",
    ]


def _change(side: AttackSide) -> str:
    return f"{side.change:+.1%} [{side.low:+.1%}, {side.high:+.1%}]"


def _abouts(attacks: Mapping[str, str]) -> list[str]:
    return [
        "## The zoo",
        "",
        *(f"- `{name}`: {about}." for name, about in attacks.items()),
        "",
    ]


def _triggers(table: Sequence[AttackLine]) -> list[str]:
    """Tabulate how well the planted answers were learnt."""
    mine = [row for row in table if row.attack in {"back_door", "poisoned_data"}]
    if not mine:
        return []
    head = ["attack", "loss, nobody lies", "loss, no guards", "loss, guards"]
    lines = []
    for row in mine:
        bare, guarded = row.open, row.guarded
        losses = (bare.trigger_loss_alone, bare.trigger_loss, guarded.trigger_loss)
        shares = (bare.trigger_share, guarded.trigger_share)
        cells = [f"`{row.attack}`", *(f"{loss:.2f}" for loss in losses)]
        lines.append([*cells, *(f"{share:.0%}" for share in shares)])
    return [
        "## What the trigger brings out",
        "",
        (
            "Public hold-out prompts behind the trigger: mean loss of the planted answer (nats a "
            "token), and how many greedy answers are the planted one."
        ),
        "",
        markdown_table([*head, "answers, no guards", "answers, guards"], lines),
        "",
    ]


def _guards(table: Sequence[AttackLine]) -> list[str]:
    """Tabulate how often guards bounded the liar and honest sites, and list refused sites."""
    lines, refused = [], []
    for row in table:
        name = f"`{row.attack}`" if row.attack else "nobody lies"
        cells = [f"`{row.rule}`", name]
        for liar in (True, False):
            said = [
                one
                for sites in row.guarded.bounded.values()
                for site, rounds in sorted(sites.items())
                if (site == LIAR) == liar
                for one in rounds
            ]
            cells += [str(len(said)), f"the first: {said[0].why}" if said else "–"]
        lines.append(cells)
        for how, side in (("open", row.open), ("guarded", row.guarded)):
            for seed, sites in side.missing.items():
                for site, why in sorted(sites.items()):
                    refused.append(f"- {name}, {how}, seed {seed}, {site}: refused, {why}")
    head = ["threshold", "attack", "the liar", "why", "honest sites", "why"]
    return [
        "## Who was bounded, and why",
        "",
        (
            "Rounds in which the guards bounded the liar, and rounds of honest sites, over all "
            "seeds; the first reason that was given. Every single one is in `attacks.json`."
        ),
        "",
        markdown_table(head, lines),
        "",
        *refused,
        "",
    ]
