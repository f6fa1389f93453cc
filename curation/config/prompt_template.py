"""Fill a prompt template with the values of several columns.

A template names columns in braces; literal braces are doubled. Its paragraphs are parted by blank
lines, and one that names columns, all of them empty, vanishes with the blank lines before it.
"""

import re
from collections.abc import Mapping

_PART = re.compile(r"\{\{|\}\}|\{([^{}]+)\}|[{}]")
_BLANK_LINES = re.compile(r"(\n(?:[ \t]*\n)+)")
_LITERAL = {"{{": "{", "}}": "}"}


def template_columns(template: str) -> tuple[str, ...] | None:
    """Return the columns that a template names, once each; None if it is no template."""
    names: dict[str, None] = {}
    for part in _PART.finditer(template):
        if part[1] is not None:
            names[part[1]] = None
        elif part[0] not in _LITERAL:
            return None
    return tuple(names) or None


def fill_template(template: str, values: Mapping[str, str]) -> str:
    """Return the prompt of a row.

    Args:
        template: A template of which :func:`template_columns` knows the columns.
        values: Column → text, of every column that the template names.
    """
    pieces = _BLANK_LINES.split(template)
    filled: list[str] = []
    for paragraph, before in zip(pieces[::2], ["", *pieces[1::2]], strict=True):
        names = template_columns(paragraph) or ()
        if names and not any(values[name].strip() for name in names):
            continue
        text = _PART.sub(lambda part: _LITERAL.get(part[0]) or values[part[1]], paragraph)
        filled += [before, text] if filled else [text]
    return "".join(filled)
