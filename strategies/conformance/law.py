"""Define laws, each a sentence with a check that says what it found, and judge plug-ins by them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

Make = Callable[[], Any]
"""Makes the plug-in anew; a Protocol of ``strategies/interfaces``, by kind."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Law:
    """One law of a kind of plug-in."""

    says: str
    check: Callable[[Make], str]
    """Returns "" where the law holds, else what was found; an exception is a finding, too."""
    required: bool = True
    """False: usual of the kind, but some rules break it knowingly."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """Verdict of one law on one plug-in."""

    law: str
    holds: bool
    required: bool
    found: str = ""


def judge(law: Law, make: Make) -> Verdict:
    """Judge a plug-in by a law; an exception is a finding, too."""
    try:
        found = law.check(make)
    except Exception as error:  # noqa: BLE001 - another's code may raise anything, and that is what is looked for
        found = f"{type(error).__name__}: {error}"
    return Verdict(law=law.says, holds=not found, required=law.required, found=found)


def raises(call: Callable[[], object], *errors: type[Exception]) -> str:
    """Return "" where the call raises one of the errors, else what it did."""
    names = " or ".join(error.__name__ for error in errors)
    try:
        given = call()
    except errors:
        return ""
    except Exception as error:  # noqa: BLE001 - see judge
        return f"expected {names}, got {type(error).__name__}: {error}"
    return f"expected {names}, got {str(given)[:80]}"


def same_arrays(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Return whether two mappings hold the same arrays, bit for bit."""
    return set(one) == set(other) and all(
        np.asarray(one[name]).tobytes() == np.asarray(other[name]).tobytes() for name in one
    )
