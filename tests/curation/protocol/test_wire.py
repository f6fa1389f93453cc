"""Laws of the wire: what goes in comes out, and nothing else ever does."""

import dataclasses
import json
import struct
import typing
from dataclasses import replace
from types import MappingProxyType

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedwinnow.curation.datatypes import Adapter, Metrics, ScoreSummary, SignalTable
from fedwinnow.curation.errors import CurationError, NonFiniteError, ProtocolError
from fedwinnow.curation.protocol import messages as m
from fedwinnow.curation.protocol import wire

HEADER = m.Header(run="run-1", phase="train", round=2, arm="curated", adapter="ab" * 32)


def make_adapter(dtype=torch.float32, *, rank=2) -> Adapter:
    """Two modules with dotted names, as PEFT names them."""
    generator = torch.Generator().manual_seed(rank)
    names = ("model.layers.0.q_proj", "model.layers.1.q_proj")
    return Adapter(
        base="base",
        a={name: torch.randn(rank, 3, generator=generator).to(dtype) for name in names},
        b={name: torch.randn(4, rank, generator=generator).to(dtype) for name in names},
        scales=dict.fromkeys(names, 2.0),
    )


def make_table(rows=3) -> SignalTable:
    """One plain and one two-axis column."""
    return SignalTable(
        ids=tuple(f"id-{i}" for i in range(rows)),
        domains=("law",) * rows,
        checkpoint=1,
        status=np.zeros(rows, dtype=np.int8),
        columns={
            "loss": np.linspace(0, 1, rows, dtype=np.float32),
            "dot": np.arange(2 * rows, dtype=np.float32).reshape(rows, 2),
        },
        references=("law", "finance"),
        reference_gram=np.eye(2),
        learning_rate=1e-3,
    )


CARD = m.SiteCard(
    header=HEADER, site="a", samples=5, base="f" * 64, anchors="e" * 64, versions={"torch": "2"}
)
SUMMARY = ScoreSummary(edges=np.array([0.0, 0.5, 1.0]), counts=np.array([0.0, 5.0, 7.5, 1.0]))
EXAMPLES: tuple[m.Message, ...] = (
    m.JoinRequest(header=HEADER, terms='{"a": "ü × −"}'),
    m.Joined(header=HEADER, site="a", card=CARD, adapter=make_adapter()),
    m.Joined(header=HEADER, site="a", card=replace(CARD, versions={}), adapter=make_adapter()),
    m.ProbeRequest(header=HEADER, adapter=make_adapter(torch.bfloat16)),
    m.MeasureRequest(
        header=HEADER, adapter=make_adapter(torch.float16), checkpoint=1, learning_rate=1e-300
    ),
    m.PublicSignals(header=HEADER, site="a", table=make_table(), kinds=("clean",), parents=("p",)),
    m.PublicSignals(header=HEADER, site="a", table=make_table(0), kinds=(), parents=()),
    m.TrainRequest(
        header=HEADER,
        adapter=make_adapter(torch.float64),
        step_offset=0,
        total_steps=9,
        sites=("a", "b"),
    ),
    m.TrainedAdapter(
        header=HEADER, site="a", samples=0, adapter=None, losses=(), learning_rate=0.0
    ),
    m.TrainedAdapter(
        header=HEADER,
        site="a",
        samples=3,
        adapter=make_adapter(),
        losses=(1.0, 0.1 + 0.2),
        learning_rate=0.1,
    ),
    m.ScoreRequest(
        header=HEADER, tables=(make_table(), make_table(1)), kinds=("clean", "swap"), parents=()
    ),
    m.SummaryReply(
        header=HEADER,
        site="a",
        summary=SUMMARY,
        public_scores=np.array([0.25, -1.0]),
        forecast={"auroc": 0.75},
        unscored=2,
    ),
    m.ClusterRequest(
        header=HEADER, threshold=0.5, per_site={"a": 0.25}, centroids=np.array([[0.5, -8.0]])
    ),
    m.ClusterReply(header=HEADER, site="a", counts=(3, 0), sums=np.array([[1.5], [0.0]])),
    m.QuotaRequest(
        header=HEADER, threshold=0.5, per_site={}, totals=(3, 0), extra={"a": (0,), "b": ()}
    ),
    m.SelectRequest(header=HEADER, threshold=float("-inf"), per_site={"a": float("inf"), "b": 0.5}),
    m.SelectRequest(header=HEADER, threshold=0.5),
    m.KeptReply(header=HEADER, site="a", kept={"curated": 3, "random": 0}),
    m.KeptReply(header=HEADER, site="a", kept={}),
    m.EvaluateRequest(header=HEADER, adapter=make_adapter(), generate=3),
    m.MetricsReply(
        header=HEADER,
        site="a",
        public_losses=np.array([1.0, 2.0]),
        own=Metrics(loss_sum=3.0, samples=2),
        prompts=("q",),
        references=("r",),
        generations=("",),
    ),
    m.JudgeRequest(header=HEADER, adapter=make_adapter(), candidates={"b": make_adapter()}),
    m.JudgedAdapters(
        header=HEADER,
        site="a",
        before=np.array([1.0, 2.0]),
        losses={"b": np.array([0.5, 2.5])},
        domains=("law", ""),
    ),
    m.CloseRequest(header=HEADER),
    m.Receipt(header=HEADER, site="a"),
    m.Refusal(header=HEADER, site="a", clause="failed", reason="no 'x' \"y\" \n"),
)


def same(one: object, other: object) -> bool:
    """Equal in type and every bit; mappings by content."""
    if dataclasses.is_dataclass(one):
        fields = [f.name for f in dataclasses.fields(one)]
        return type(one) is type(other) and all(
            same(getattr(one, name), getattr(other, name)) for name in fields
        )
    if isinstance(one, typing.Mapping):
        return list(one) == list(other) and all(same(one[key], other[key]) for key in one)
    if isinstance(one, tuple):
        pairs = zip(one, other, strict=True) if len(one) == len(other) else [(0, 1)]
        return isinstance(other, tuple) and all(same(a, b) for a, b in pairs)
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and one.shape == other.shape and torch.equal(one, other)
    if isinstance(one, np.ndarray):
        return one.dtype == other.dtype and one.shape == other.shape and np.array_equal(one, other)
    return type(one) is type(other) and one == other


def test_wire_examples_cover_every_message():
    """Each of the message classes stands among the examples."""
    classes = typing.get_args(m.Request) + typing.get_args(m.Reply)
    assert {type(example) for example in EXAMPLES} == set(classes)


@pytest.mark.parametrize("message", EXAMPLES, ids=lambda message: type(message).__name__)
def test_wire_decode_undoes_encode(message):
    """Decode ∘ encode is the identity, bit for bit, with types and order of keys."""
    assert same(wire.decode(wire.encode(message)), message)
    assert same(wire.from_arrays(*wire.to_arrays(message)), message)
    assert same(wire.restore(wire.dump(message), type(message)), message)


@settings(max_examples=60, deadline=None)
@given(
    losses=st.lists(st.floats(allow_nan=False), max_size=5),
    samples=st.integers(min_value=0, max_value=10**12),
    text=st.text(st.characters(exclude_categories=["Cs"]), max_size=30),
    rank=st.integers(min_value=1, max_value=3),
    dtype=st.sampled_from([torch.bfloat16, torch.float16, torch.float32, torch.float64]),
)
def test_wire_round_trip_holds_for_any_numbers_and_texts(losses, samples, text, rank, dtype):
    """Whatever the floats (infinite too), texts, ranks and dtypes: the same message comes out."""
    message = m.TrainedAdapter(
        header=replace(HEADER, run=text),
        site=text,
        samples=samples,
        adapter=make_adapter(dtype, rank=rank),
        losses=tuple(losses),
        learning_rate=0.5,
    )
    assert same(wire.decode(wire.encode(message)), message)


@settings(max_examples=40, deadline=None)
@given(st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), st.integers(0, 9)))
def test_wire_carries_any_mapping_of_counts(kept):
    """Keys of a mapping may be any text, dots and quotes too."""
    message = m.KeptReply(header=HEADER, site="a", kept=MappingProxyType(kept))
    assert wire.decode(wire.encode(message)).kept == kept


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_wire_refuses_non_finite_adapters_by_name(value, dtype):
    """A NaN or an infinity in a factor is refused by the factor's name on both ways."""
    adapter = make_adapter(dtype)
    adapter.a["model.layers.1.q_proj"][0, 0] = value
    message = m.ProbeRequest(header=HEADER, adapter=adapter)
    with pytest.raises(NonFiniteError, match=r"adapter\.a\.model\.layers\.1\.q_proj"):
        wire.encode(message)
    good = m.ProbeRequest(header=HEADER, adapter=make_adapter(dtype))
    text, arrays = wire.to_arrays(good)
    name = "ProbeRequest.adapter.a.model.layers.1.q_proj"
    tensor = adapter.a["model.layers.1.q_proj"]
    bits = tensor.view(torch.uint16) if dtype is torch.bfloat16 else tensor
    with pytest.raises(NonFiniteError, match=r"adapter\.a\.model\.layers\.1\.q_proj"):
        wire.from_arrays(text, arrays | {name: bits.numpy()})


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_wire_refuses_non_finite_columns_by_name(value):
    """A NaN in a signal column is refused by the column's name on both ways."""
    good = EXAMPLES[5]
    text, arrays = wire.to_arrays(good)
    bad = np.full(3, value, dtype=np.float32)
    table = replace(good.table, columns=good.table.columns | {"loss": bad})
    with pytest.raises(NonFiniteError, match=r"table\.columns\.loss"):
        wire.encode(replace(good, table=table))
    with pytest.raises(NonFiniteError, match=r"table\.columns\.loss"):
        wire.from_arrays(text, arrays | {"PublicSignals.table.columns.loss": bad})


def test_wire_refuses_a_nan_number_by_name():
    """A NaN among plain numbers is refused by the field's name."""
    with pytest.raises(NonFiniteError, match=r"SelectRequest\.threshold"):
        wire.encode(m.SelectRequest(header=HEADER, threshold=float("nan")))


def test_wire_refuses_what_is_no_message():
    """A node that is no number, text, array or dataclass of ours cannot travel."""
    with pytest.raises(ProtocolError, match=r"dict\.x\.0 is a object, which cannot travel"):
        wire.pack({"x": [object()]})


def tampered(path: str, value: object, example: m.Message = EXAMPLES[5]):
    """Text and arrays of an example with one node of its tree replaced (… removes it)."""
    text, arrays = wire.to_arrays(example)
    tree = json.loads(text)
    *front, last = path.split("/")
    node = tree
    for key in front:
        node = node[int(key) if isinstance(node, list) else key]
    if value is ...:
        del node[last]
    else:
        node[int(last) if isinstance(node, list) else last] = value
    return json.dumps(tree), arrays


@pytest.mark.parametrize(
    ("path", "value", "match"),
    [
        ("kind", "Exploit", "unknown; known: JoinRequest"),
        ("kind", "KeptReply", "KeptReply: expected the fields"),
        ("kind", ["KeptReply"], "unknown"),
        ("body", [], "expected the fields"),
        ("body/extra", 1, "expected the fields"),
        ("body/site", ..., "expected the fields"),
        ("body/site", 7, r"PublicSignals\.site: expected a str"),
        ("body/site", None, r"PublicSignals\.site"),
        ("body/header/round", "2", r"header\.round: expected a int"),
        ("body/header/round", True, r"header\.round"),
        ("body/header/round", 2.0, r"header\.round"),
        ("body/header/secret", "x", r"PublicSignals\.header"),
        ("body/table/learning_rate", "0.1", r"table\.learning_rate: expected a number"),
        ("body/table/learning_rate", True, r"table\.learning_rate"),
        ("body/table/learning_rate", 10**400, r"table\.learning_rate"),
        ("body/table/learning_rate", float("nan"), r"table\.learning_rate"),
        ("body/table/columns", [], r"table\.columns: expected an object"),
        ("body/table/columns/loss", 1.0, r"columns\.loss: expected an array"),
        ("body/table/columns/loss", ..., "are not part of"),
        ("body/table/columns/loss/array", "PublicSignals.table.status", "its array is missing"),
        ("body/table/columns/loss/array", ["x"], "its array is missing"),
        ("body/table/columns/loss/shape", [4], r"columns\.loss"),
        ("body/table/columns/loss/dtype", "float64", r"columns\.loss"),
        ("body/table/columns/loss/dtype", "bfloat16", r"columns\.loss"),
        ("body/kinds", "clean", r"kinds: expected a list"),
        ("body/kinds/0", {}, r"kinds\.0"),
    ],
)
def test_wire_refuses_a_tampered_tree(path, value, match):
    """Unknown kinds and fields, wrong types, shapes and dtypes: a ProtocolError that names it."""
    with pytest.raises(ProtocolError, match=match):
        wire.from_arrays(*tampered(path, value))


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"kind": "Receipt"}', "null", "[" * 100_000, '{"kind": 1, "body": 2}']
)
def test_wire_refuses_a_text_that_is_no_message(text):
    """A cut, foreign or endlessly nested text is a ProtocolError."""
    with pytest.raises(ProtocolError):
        wire.from_arrays(text, {})


@pytest.mark.parametrize(
    ("name", "array"),
    [
        ("PublicSignals.table.columns.loss", np.zeros(3, dtype=np.int64)),
        ("PublicSignals.table.status", np.zeros(3, dtype=np.float32)),
        ("PublicSignals.table.status", np.zeros((3, 1), dtype=np.int8)),
        ("PublicSignals.table.reference_gram", np.zeros(4)),
    ],
)
def test_wire_refuses_a_dtype_or_shape_that_the_class_does_not_declare(name, array):
    """An array whose text agrees with it, but not with the declared class, is refused by name."""
    text, arrays = wire.to_arrays(EXAMPLES[5])
    tree = json.loads(text)
    node = tree["body"]
    for key in name.split(".")[1:]:
        node = node[key]
    node["dtype"], node["shape"] = str(array.dtype), list(array.shape)
    with pytest.raises(ProtocolError, match=name.replace(".", r"\.")):
        wire.from_arrays(json.dumps(tree), arrays | {name: array})


def test_wire_refuses_missing_and_surplus_arrays():
    """Every array is named once in the text, and no other one comes along."""
    text, arrays = wire.to_arrays(EXAMPLES[5])
    with pytest.raises(ProtocolError, match=r"are not part of PublicSignals"):
        wire.from_arrays(text, arrays | {"stowaway": np.zeros(1)})
    for name in arrays:
        rest = {key: value for key, value in arrays.items() if key != name}
        with pytest.raises(ProtocolError, match="its array is missing"):
            wire.from_arrays(text, rest)


@pytest.mark.parametrize("example", [EXAMPLES[0], EXAMPLES[5], EXAMPLES[9]])
def test_wire_refuses_every_truncation(example):
    """However many bytes are cut off: a ProtocolError, never another message."""
    data = wire.encode(example)
    for size in {*range(0, len(data), max(1, len(data) // 97)), len(data) - 1}:
        with pytest.raises(ProtocolError):
            wire.decode(data[:size])


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_wire_noise_gives_a_message_or_a_named_error(data):
    """Any flipped bytes: the declared classes or a CurationError come out, nothing else."""
    example = data.draw(st.sampled_from(EXAMPLES))
    raw = bytearray(wire.encode(example))
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    try:
        found = wire.decode(bytes(raw))
    except CurationError:
        return
    assert isinstance(found, typing.get_args(m.Message))


def test_wire_decodes_without_pickle():
    """Bytes of a pickle are refused, not run."""
    with pytest.raises(ProtocolError, match="not a whole message"):
        wire.decode(b"\x80\x04cos\nsystem\n(S'true'\ntR.")
    with pytest.raises(ProtocolError, match="not a whole message"):
        wire.decode(struct.pack("<Q", 2**62) + b"{}")


@pytest.mark.parametrize("cls", [m.KeptReply, ScoreSummary])
def test_wire_restore_gives_the_asked_class_only(cls):
    """A state file that holds another class is refused."""
    with pytest.raises(ProtocolError):
        wire.restore(wire.dump(EXAMPLES[5]), cls)
