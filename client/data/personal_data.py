"""Find personal data by patterns, so that the gate leaves out samples that carry it.

Patterns find shapes, not people: names and free descriptions pass. They are a net under the silo's
own de-identification, never its replacement. Card and account numbers count only where their check
digits hold (Luhn, ISO/IEC 7812-1; modulo 97, ISO 13616), so that figures and dates pass.

Account numbers are not held to ``stdnum.iban``'s list of countries: a net must not lose the number
of a country that joins later. Phone numbers have a pattern of their own: ``phonenumbers`` takes
48 MB, 40 times as long, and passes over numbers after 00 and with slashes.
"""

import ipaddress
import re
from collections.abc import Callable, Iterable, Mapping

from stdnum import luhn
from stdnum.iso7064 import mod_97_10

from fedwinnow.curation.errors import ConfigError

_IBAN_LENGTHS = range(15, 35)
_CARD_LENGTHS = range(13, 20)
_PHONE_LENGTHS = range(8, 16)


def _digits(text: str) -> str:
    """Return the digits of a text, those of other scripts as 0 to 9."""
    return "".join(str(int(char)) for char in text if char.isdecimal())


def _luhn(text: str) -> bool:
    digits = _digits(text)
    return len(digits) in _CARD_LENGTHS and len(set(digits)) > 1 and luhn.is_valid(digits)


def _iban(text: str) -> bool:
    plain = "".join(text.split())
    return len(plain) in _IBAN_LENGTHS and mod_97_10.is_valid(plain[4:] + plain[:4])


def _phone(text: str) -> bool:
    return len(_digits(text)) in _PHONE_LENGTHS


def _address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def _any(_: str) -> bool:
    return True


# Quantifiers are possessive or bounded: no text makes a search slower than its length.
_KNOWN: Mapping[str, tuple[str, Callable[[str], bool]]] = {
    "email": (r"(?<![\w.+-])[\w.+-]{1,64}+@(?:[A-Za-z0-9-]{1,63}+\.)++[A-Za-z]{2,24}", _any),
    "phone": (r"(?<![\w.])(?:\+|00)\d[\d ()/.-]{6,22}\d(?!\w)", _phone),
    "iban": (r"(?<!\w)[A-Z]{2}\d{2}(?: ?[A-Z0-9]){11,30}(?!\w)", _iban),
    "card": (r"(?<![\d.])\d(?:[ -]?\d){12,18}(?![\d.])", _luhn),
    "ip": (r"(?<![\w.:])(?:\d{1,3}(?:\.\d{1,3}){3}|[0-9A-Fa-f:]{3,39})(?![\w.:])", _address),
}

_GROUP = re.compile(r"\(([^()]*)\)((?:[*+]|\{\d*,\})?[+?]?)")
_ENDLESS = re.compile(r"(?:[*+]|\{\d*,\})[+?]?")

Finder = Callable[[str], str]
"""Text → the name of the first kind of personal data in it, or ""."""


def finder(kinds: Iterable[str]) -> Finder:
    """Return a search for the given kinds.

    Args:
        kinds: Names of ``gate.personal_data``, or ``re:`` and a pattern of the silo's own.

    Raises:
        ConfigError: a name is unknown or a pattern is malformed.
    """
    searches = [(kind, *_search(kind)) for kind in kinds]

    def find(text: str) -> str:
        for kind, pattern, holds in searches:
            if any(holds(match.group()) for match in pattern.finditer(text)):
                return kind
        return ""

    return find


def _search(kind: str) -> tuple[re.Pattern[str], Callable[[str], bool]]:
    if kind in _KNOWN:
        pattern, holds = _KNOWN[kind]
        return re.compile(pattern), holds
    if not kind.startswith("re:"):
        message = (
            f"gate.personal_data: expected one of {', '.join(_KNOWN)} or re:PATTERN, got {kind!r}"
        )
        raise ConfigError(message)
    text = kind.removeprefix("re:")
    if _repeats_repeats(text):
        message = (
            f"gate.personal_data: {kind!r} repeats a group that itself repeats, which a text can "
            "make endless; write the inner repeat possessively (*+, ++) or with bounds {1,9}"
        )
        raise ConfigError(message)
    try:
        return re.compile(text), _any
    except re.error as error:
        message = f"gate.personal_data: {kind!r} is no pattern ({error}); mend it"
        raise ConfigError(message) from error


def _repeats_repeats(pattern: str) -> bool:
    """Return whether a repeated group holds a repeat, neither possessive, as in (a+)+.

    Such a pattern takes exponential time. This common trap is searched from the innermost group
    outwards; overlapping choices such as (a|a)+ are not seen.
    """
    plain = re.sub(r"\[\^?\]?[^\]]*\]", "x", re.sub(r"\\.", "x", pattern))
    while group := _GROUP.search(plain):
        inside, outside = group.group(1), _endless(group.group(2))
        within = _endless(inside) and not inside.startswith("?>")
        if within and outside:
            return True
        plain = plain[: group.start()] + ("x+" if within or outside else "x") + plain[group.end() :]
    return False


def _endless(text: str) -> bool:
    """Return whether a text of quantifiers holds one that is neither bounded nor possessive."""
    return any(not found[1:].endswith("+") for found in _ENDLESS.findall(text))
