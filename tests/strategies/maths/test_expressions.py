"""Laws of reading expressions: counted as built, never evaluated, garbage without harm."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedwinnow.strategies.maths.expressions import LONGEST, Operators, operators

NUMBER = st.integers(0, 99).map(lambda n: (str(n), 0, 0))
TREE = st.recursive(
    NUMBER,
    lambda inner: st.tuples(inner, st.sampled_from("+-*/"), inner).map(
        lambda t: (
            f"({t[0][0]} {t[1]} {t[2][0]})",
            t[0][1] + t[2][1] + 1,
            max(t[0][2], t[2][2]) + 1,
        )
    ),
    max_leaves=12,
)


@given(tree=TREE)
def test_operators_are_those_that_the_expression_was_built_of(tree):
    """Oracle: count and depth grow as the expression does; without an operator there is none."""
    text, count, depth = tree
    expected = Operators(count, depth) if count else None
    for sentence in (text, f"What is {text}?", f"Compute {text} = ", f"{text} = 7."):
        assert operators(sentence) == expected


@pytest.mark.parametrize(
    ("text", "count", "depth"),
    [
        ("not (True and False) or true", 3, 3),
        ("!(true && false)", 2, 2),
        ("1 < 2 and 3 > 2", 3, 2),
        ("true or false or true", 2, 1),
        ("2 × 3 ÷ 4 =", 2, 2),
        ("-5 + 3", 1, 1),
        ("2^10 = ?", 1, 1),
        ("apples and 3 + 4 oranges", 1, 1),
        ("(see 3 + 4)", 1, 1),
        ("first 1 + 2, then 3 * (4 + 5)", 2, 2),
    ],
)
def test_operators_of_spellings(text, count, depth):
    """Words, signs, symbols and sentences around (by hand)."""
    assert operators(text) == Operators(count, depth)


@pytest.mark.parametrize(
    "text",
    ["", "who?", "5", "-5", "and or not", "2024-01-05", "f(1) + x", "((((", "1 +", "( " * 240,
     "1" * 5000 + " + 1", "(" * 300 + "1 + 1" + ")" * 300, "__import__('os').system('x')",
     "-" * (LONGEST - 3) + "1"],
)  # fmt: skip
def test_operators_of_none(text):
    """Prose, a lone number, half an expression, code, and what is too long hold none."""
    assert operators(text) is None


@given(text=st.text(alphabet="0123456789+-*/%^()<>=!&|~. andortuefls", max_size=600))
def test_operators_of_garbage_is_no_error(text):
    """Any text is read without an error; what is found has operators and a depth."""
    found = operators(text)
    assert found is None or found.count >= found.depth >= 1
