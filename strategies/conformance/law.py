"""What a law is: a sentence, whether it must hold, and a function that says what it found."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

Make = Callable[[], Any]
"""Makes the plug-in anew; a Protocol of ``strategies/interfaces/merging.py``, by kind."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Law:
    """One law of a kind of plug-in."""

    says: str
    check: Callable[[Make], str]
    """Nothing ("") where it holds, else what was found; an exception is a finding, too."""
    required: bool = True
    """False: usual of the kind, and some rules break it knowingly."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What came of a law."""

    law: str
    holds: bool
    required: bool
    found: str = ""


def judge(law: Law, make: Make) -> Verdict:
    """Try a law on a plug-in."""
    try:
        found = law.check(make)
    except Exception as error:  # noqa: BLE001 - another's code may raise anything, and that is what is looked for
        found = f"{type(error).__name__}: {error}"
    return Verdict(law=law.says, holds=not found, required=law.required, found=found)


def raises(call: Callable[[], object], *errors: type[Exception]) -> str:
    """Nothing ("") where the call raises one of the errors, else what it did."""
    names = " or ".join(error.__name__ for error in errors)
    try:
        given = call()
    except errors:
        return ""
    except Exception as error:  # noqa: BLE001 - see judge
        return f"expected {names}, got {type(error).__name__}: {error}"
    return f"expected {names}, got {str(given)[:80]}"


def same_arrays(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two mappings hold the same arrays, bit for bit."""
    return set(one) == set(other) and all(
        np.asarray(one[name]).tobytes() == np.asarray(other[name]).tobytes() for name in one
    )
