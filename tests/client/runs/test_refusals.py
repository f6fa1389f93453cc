"""Laws of refusals: nothing measured is in one, whatever went wrong."""

import ast
import dataclasses
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedwinnow.client.boundary.release import Released, release_refusal, released_bytes
from fedwinnow.client.runs.told_text import Constant, ToldText, constant, tell
from fedwinnow.curation import errors
from fedwinnow.curation.config.site import PolicySection
from fedwinnow.curation.errors import CurationError, ProtocolError
from fedwinnow.curation.protocol import messages as m
from fedwinnow.curation.protocol import wire
from fedwinnow.curation.protocol.phases import Phase
from fedwinnow.curation.protocol.refusal_clauses import CLAUSES

CLIENT = Path(errors.__file__).parents[1] / "client"
CANARY, MEASURED = "quetzal", 3.14159265
RAISED = [
    *(kind for kind in vars(errors).values() if isinstance(kind, type)),
    ValueError, KeyError, OSError, RuntimeError, MemoryError, IndexError, UnicodeError,
]  # fmt: skip


@settings(max_examples=80, deadline=None)
@given(st.sampled_from(RAISED), st.text(max_size=20), st.sampled_from(Phase), st.text(max_size=9))
def test_refusal_of_any_error_holds_nothing_of_its_text(kind, words, phase, clause):
    """Law: no class of error, text, clause or untold string of it is in the bytes that leave."""
    error = kind(f"{words} {CANARY}: loss {MEASURED} of 41 samples")
    if isinstance(error, CurationError):
        error.told, error.clause = f"{CANARY} {MEASURED}", clause or "failed"
    header = m.Header(run="r", phase=phase.value)
    left = release_refusal(error, header, "north", PolicySection(), simulation=False)
    plain = released_bytes(left)
    assert not any(word.encode() in plain for word in (CANARY, str(MEASURED), "41", kind.__name__))
    reply = wire.decode(plain)
    assert reply.clause in CLAUSES
    assert len(reply.reference) == 8


def test_refusal_clauses_hold_every_key_of_the_policy():
    """Law: each key of [policy] is a clause, so a new key cannot be refused by "failed"."""
    assert {f"policy.{field.name}" for field in dataclasses.fields(PolicySection)} <= CLAUSES


def test_refusal_takes_no_other_clause_and_no_other_reference():
    """Edge: a word outside the closed lists can be neither made, sent nor read."""
    good = {"header": m.Header(run="r", phase="join"), "site": "a", "reason": ""}
    for strange in ({"clause": "NonFiniteError"}, {"clause": "failed", "reference": "Loss 3.1"}):
        with pytest.raises(ProtocolError, match=r"Refusal\."):
            m.Refusal(**good | strange)
    sent = wire.encode(m.Refusal(**good, clause="clusters")).replace(b"clusters", b"mean 3.1")
    with pytest.raises(ProtocolError, match="clause"):
        wire.decode(sent)


def test_released_is_made_by_the_door_alone():
    """Law: a reply that nothing released, and a self-made release, leave no byte."""
    receipt = m.Receipt(header=m.Header(run="r", phase="close"), site="a")
    with pytest.raises(TypeError, match="not released"):
        released_bytes(receipt)
    with pytest.raises(TypeError, match="alone"):
        Released(receipt, wire.encode(receipt), object())


def test_told_text_is_made_of_constants_alone():
    """Law: counts, texts, closures and strings from elsewhere cannot be told."""
    secret = 41
    for make in (
        lambda: ToldText("41 samples"),
        lambda: Constant("41", None),
        lambda: tell("{n} samples", n=secret),
        lambda: constant(lambda _: secret, PolicySection()),
        lambda: constant("imag", 41),
    ):
        with pytest.raises(TypeError):
            make()
    assert type(tell("at most {n}", n=constant("max_rank", PolicySection())) + " 41") is str


def test_told_texts_are_literals():
    """Law: no tell() under client/ interpolates, and no told= is built in place."""
    for file in CLIENT.rglob("*.py"):
        for call in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if not isinstance(call, ast.Call):
                continue
            if getattr(call.func, "id", "") == "tell":
                assert isinstance(call.args[0], ast.Constant), (file, call.lineno)
            for word in call.keywords:
                built = isinstance(word.value, ast.JoinedStr | ast.Constant | ast.BinOp)
                assert not (word.arg == "told" and built), (file, call.lineno)
    guarded = (CLIENT / "boundary" / "guarded_site.py").read_text(encoding="utf-8")
    assert "wire.encode" not in guarded
