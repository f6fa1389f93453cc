"""Make the texts of refusals that may leave a site, from what its coordinator already knows.

A :class:`ToldText` is a literal whose gaps hold only a :class:`Constant`, and a constant is read
from a request, the agreed terms or the policy by :func:`constant`. A text that was put together in
another way, with a count, a loss or a path, is a plain ``str``, which no refusal tells.
"""

import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Self, TypeAlias, get_args

from fedwinnow.curation.config.run import RunTerms
from fedwinnow.curation.config.site import PolicySection
from fedwinnow.curation.protocol.header import Header
from fedwinnow.curation.protocol.messages import Request

Source: TypeAlias = Request | Header | RunTerms | PolicySection
"""What may be told of: sent by the coordinator, agreed with it, or set as a limit by the site."""
_SOURCES = get_args(Source)
_LONGEST = 200
"""Most characters of one value."""
_KEY: Final = object()
"""What only the functions of this module hold."""


@dataclass(frozen=True, slots=True)
class Constant:
    """Text of a value that follows from sources alone; made by :func:`constant`."""

    text: str
    key: object

    def __post_init__(self) -> None:
        _check_key(self.key, "constant")

    def __str__(self) -> str:
        """Return the value's text."""
        return self.text


class ToldText(str):
    """Text that may leave a site; made by :func:`tell`. What is computed from it is a plain str."""

    __slots__ = ()

    def __new__(cls, text: str, key: object = None) -> Self:
        """Make the text, if the key is this module's own."""
        _check_key(key, "tell")
        return super().__new__(cls, text)

    def __reduce__(self) -> tuple[type[str], tuple[str]]:
        """Leave a process as a plain text: a copy that came from elsewhere is not told."""
        return str, (str(self),)


def constant(read: str | Callable[..., object], *sources: Source) -> Constant:
    """Return a value that follows from requests, terms and policy alone, as a text.

    Args:
        read: Name of an attribute of the one source, with dots; or a function of the sources,
            which must not carry anything else with it.
        sources: Requests, headers, terms or policies.

    Raises:
        TypeError: a source is none of these, or the function is a closure.
    """
    strange = [type(one).__name__ for one in sources if not isinstance(one, _SOURCES)]
    if strange or not sources:
        message = f"a refusal tells of requests, terms and policies, not of {strange or 'nothing'}"
        raise TypeError(message)
    if isinstance(read, str):
        value: Any = operator.attrgetter(read)(*sources)
    else:
        carried = [
            getattr(read, name, None) for name in ("__closure__", "__self__", "__defaults__")
        ]
        if not hasattr(read, "__code__") or any(carried):
            message = "a refusal's constant is read by a plain function, which carries no value"
            raise TypeError(message)
        value = read(*sources)
    words = " or ".join(value) if isinstance(value, tuple) and _is_texts(value) else str(value)
    return Constant(_clean(words), _KEY)


def tell(words: str, **constants: Constant | ToldText) -> ToldText:
    """Return a text that may leave: a literal whose gaps ``{name}`` hold constants.

    Raises:
        TypeError: a gap is filled by anything else.
    """
    kinds = Constant | ToldText
    strange = sorted(name for name, one in constants.items() if not isinstance(one, kinds))
    if strange:
        message = f"a refusal tells constants alone; make {', '.join(strange)} with constant()"
        raise TypeError(message)
    return ToldText(words.format_map(constants), _KEY)


def tell_limit(came: object, allowed: object) -> ToldText:
    """Return "allows …, the request holds …", with those of the two that may leave."""
    parts = []
    if isinstance(allowed, ToldText | Constant):
        parts.append(f"this site allows {allowed}")
    if isinstance(came, ToldText | Constant):
        parts.append(f"the request holds {came}")
    return ToldText(", ".join(parts), _KEY)


def _is_texts(value: tuple[object, ...]) -> bool:
    return bool(value) and all(type(item) is str for item in value)


def _clean(text: str) -> str:
    """Return a value on one line without control characters, at most ``_LONGEST`` long."""
    return "".join(c if c.isprintable() else "�" for c in text)[:_LONGEST]


def _check_key(key: object, maker: str) -> None:
    if key is not _KEY:
        message = f"a text that leaves a site is made by {maker}() from constants alone"
        raise TypeError(message)
