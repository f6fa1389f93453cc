"""Count the operators of arithmetic and boolean expressions in a text, and their depth.

The text is cut into runs of numbers, operators, brackets and the words and, or, not, true and
false; each run is parsed with ``ast``, never evaluated, and counts only if its tree holds such
nodes alone. Of several runs the one with the most operators counts, of equals the first. A run of
more than ``LONGEST`` characters is not read: a text cannot exhaust the parser's stack.
"""

import ast
import re
import warnings
from dataclasses import dataclass

LONGEST = 500
"""Longest run that is parsed, characters."""

_SPELLED = (("×", "*"), ("·", "*"), ("÷", "/"), ("−", "-"), ("&&", " and "), ("||", " or "))
_WORD = r"\b(?:and|or|not|true|false)\b"
_RUN = re.compile(rf"(?:\d+(?:\.\d+)?|[-+*/%^()<>=!&|~]|{_WORD}|[ \t])+", flags=re.IGNORECASE)
_LEADING = re.compile(r"^(?:(?:and|or)\b|[*/%^<>=&|)]|\s)+", flags=re.IGNORECASE)
_TRAILING = re.compile(r"(?:\b(?:and|or|not)|[-+*/%^<>=!&|~(]|\s)+$", flags=re.IGNORECASE)
_EQUALS = re.compile(r"(?<![=<>!])=(?!=)")
"""Equals sign between an expression and its value; it ends a run."""
_OPERATORS = (ast.BinOp, ast.UnaryOp, ast.BoolOp, ast.Compare)
_ALLOWED = (ast.operator, ast.unaryop, ast.boolop, ast.cmpop)


@dataclass(frozen=True, slots=True)
class Operators:
    """Number of operators of an expression, and their depth."""

    count: int
    """Operators, a sign before a number not counted, at least 1."""
    depth: int
    """Longest chain of operators of which each feeds the next, at least 1."""


def operators(text: str) -> Operators | None:
    """Return the operators of a text's richest expression; None where no run has one."""
    for said, meant in _SPELLED:
        text = text.replace(said, meant)
    text = _EQUALS.sub("\n", text)
    found = [shape for run in _RUN.findall(text) if (shape := _shape(run)) is not None]
    return max(found, key=lambda shape: shape.count, default=None)


def _shape(run: str) -> Operators | None:
    """Return the operators of one run; an unmatched outer bracket that hinders is left out."""
    if len(run) > LONGEST:
        return None
    run = _TRAILING.sub("", _LEADING.sub("", run))
    for text in (run, run.removeprefix("("), run.removesuffix(")")):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # the parser's remarks on "1and 2"
                tree = ast.parse(_cased(text), mode="eval").body
            shape = Operators(*_walk(tree))
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            continue
        return shape if shape.count > 0 else None
    return None


def _cased(text: str) -> str:
    """Spell words as Python does; ``!`` becomes ``not``, but for ``!=``."""
    text = re.sub(_WORD, lambda word: word[0].lower(), text, flags=re.IGNORECASE)
    text = re.sub(r"\btrue\b", "True", re.sub(r"\bfalse\b", "False", text))
    return re.sub(r"!(?!=)", " not ", text).strip()


def _walk(node: ast.expr) -> tuple[int, int]:
    """Return the number of operators at and below a node, and the longest chain of them.

    Raises:
        ValueError: the tree holds something that is no expression of numbers and truth values.
    """
    children = [child for child in ast.iter_child_nodes(node) if not isinstance(child, _ALLOWED)]
    if isinstance(node, ast.Constant) and isinstance(node.value, bool | int | float):
        return 0, 0
    if not isinstance(node, _OPERATORS):
        message = f"{type(node).__name__} is no part of an expression"
        raise ValueError(message)  # noqa: TRY004 - a text that is no expression, as the parser's own
    inner = [_walk(child) for child in children if isinstance(child, ast.expr)]
    count, depth = sum(one for one, _ in inner), max(one for _, one in inner)
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub | ast.UAdd):
        return count, depth  # a sign
    own = len(inner) - 1 if len(inner) > 1 else 1
    return count + own, depth + 1
