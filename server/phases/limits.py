"""Bound the numbers of a reply by what a run can mean, and clean the texts of strangers.

A site may send any number that the wire carries: 10**400 samples, a loss of 1e308, factors whose
product overflows. Each is refused by the name of its site before anything is summed. Histograms are
held to the count that their site joined with: j, rounded to multiples of a step s ≤ j, of
n ≤ j + s / 2 ≤ 1.5 j samples. A group of cells is told as at most twice its samples, where a little
more than s / 2 become s, so honest sites tell at most 2 n ≤ 3 j in all.
"""

import re
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import replace

import torch

from fedwinnow.curation.datatypes import Adapter, ScoreSummary
from fedwinnow.curation.protocol.replies import Refusal

MOST_SAMPLES = 10**9
"""Most samples of one silo."""
MOST_LOSS = 1e4
"""Largest mean loss of a sample, nats; a uniform guess among a million tokens costs 14."""
MOST_NORM = 1e12
"""Largest Frobenius norm of one module's update; its square stays finite in float32."""
MOST_RATE = 1e3
"""Largest learning rate."""
LONGEST = 2000
"""Most characters of a stranger's text that is shown or stored."""
ROUNDING = 3.0
"""Largest told total of a histogram over the joined count; see the module."""
_NAME = re.compile(r"[A-Za-z0-9_.+-]{1,64}")


def why_no_count(number: int, what: str, *, least: int = 0) -> str:
    """Return why a number cannot be a count of a silo's samples; "" where it can."""
    if least <= number <= MOST_SAMPLES:
        return ""
    got = str(number) if abs(number) <= MOST_SAMPLES else f"a number beyond ±{MOST_SAMPLES}"
    return f"its count of {what} is {got}; expected {least} to {MOST_SAMPLES}"


def why_no_losses(losses: Iterable[float], what: str) -> str:
    """Return why numbers cannot be mean losses, nats; "" where they can."""
    if all(0 <= value <= MOST_LOSS for value in losses):  # a NaN fails both comparisons
        return ""
    return f"its {what} hold a number that is no loss; expected 0 to {MOST_LOSS:g} nats"


def why_no_names(names: Iterable[str], what: str) -> str:
    """Return why texts cannot be names of numbers; "" where they can."""
    wrong = any(_NAME.fullmatch(name) is None for name in names)
    return f"its {what} hold a name beyond letters, digits and '_.+-'" if wrong else ""


def why_no_update(adapter: Adapter, what: str) -> str:
    """Return why an update's size is beyond what training gives; "" where it is not.

    Args:
        adapter: Finite factors.
        what: What it is, for the message.
    """
    for module in adapter.modules:
        a, b = adapter.a[module].double(), adapter.b[module].double()
        norm = float(torch.linalg.norm(a)) * float(torch.linalg.norm(b)) * adapter.scales[module]
        if not norm <= MOST_NORM:  # also where it is no number
            return f"its {what} has an update in {module} of a norm beyond {MOST_NORM:g}"
    return ""


def why_too_full(summary: ScoreSummary, unscored: int, joined: int) -> str:
    """Return why a histogram cannot be of the samples that the site joined with; "" where it can.

    Args:
        summary: Finite counts of at least 0.
        unscored: Samples without a score, rounded.
        joined: Rounded count of the site card.
    """
    most = ROUNDING * joined
    cells_fit = bool((summary.counts <= most).all())  # before they are summed: no overflow
    if not cells_fit or summary.total > most or not summary.largest_merged <= most:
        return f"its histogram holds more samples than it joined with, {joined}"
    if unscored > joined:
        return f"it speaks of more unscored samples than it joined with, {joined}"
    return ""


def hold_to_count(summary: ScoreSummary, joined: int) -> ScoreSummary:
    """Scale a histogram down to the joined count, so that no site weighs more than it said."""
    total = summary.total
    if total <= joined:
        return summary
    share = joined / total
    return replace(
        summary, counts=summary.counts * share, largest_merged=summary.largest_merged * share
    )


def clean_text(text: str, *, longest: int = LONGEST) -> str:
    """Return a stranger's text without what acts on a terminal, a log or a page.

    Control, format and surrogate characters (ANSI escapes, bidirectional overrides) become their
    code in brackets; line breaks and tabs stay. The text is cut to ``longest`` characters.
    """
    shown = "".join(
        f"<U+{ord(letter):04X}>"
        if unicodedata.category(letter) in {"Cc", "Cf", "Cs", "Zl", "Zp"} and letter not in "\n\t"
        else letter
        for letter in text[:longest]
    )
    return shown + "…" * (len(text) > longest)


def clean_line(text: str, *, longest: int = LONGEST) -> str:
    """Return a stranger's text as one clean line."""
    return " ".join(clean_text(text, longest=longest).split())


def refusal_words(refusal: Refusal) -> str:
    """Return a site's refusal as one clean line: clause, reason, and the reference to ask about."""
    words = f"refused ({clean_line(refusal.clause, longest=64)}): {clean_line(refusal.reason)}"
    if not refusal.reference:
        return words
    return f"{words} (reference {clean_line(refusal.reference, longest=64)}, ask its operator)"


def clean_table(table: Mapping[str, str], *, most: int = 64) -> dict[str, str]:
    """Return a stranger's names and values as short clean lines, at most ``most`` of them."""
    return {
        clean_line(name, longest=64): clean_line(value, longest=64)
        for name, value in sorted(table.items())[:most]
    }
