"""Laws of frames: however a payload is divided, the same bytes come together, or none do."""

import hashlib
import json
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedwinnow.client.agent import frames
from fedwinnow.client.agent.frames import (
    LONGEST_PATH,
    read_stamp_frame,
    receive_payload,
    request_frames,
    socket_address,
    split_payload,
    write_stamp_frame,
)
from fedwinnow.curation.errors import ConfigError, ProtocolError
from fedwinnow.curation.protocol.envelope import Envelope

PAYLOADS = st.binary(max_size=3000)


@st.composite
def divided(draw):
    """A payload and the same bytes in frames, some of them empty."""
    payload = draw(PAYLOADS)
    cuts = sorted(draw(st.lists(st.integers(0, len(payload)), max_size=12)))
    return payload, [payload[a:b] for a, b in pairwise([0, *cuts, len(payload)])]


@given(divided())
def test_gather_any_division_is_the_same_payload(case):
    """Frames of any lengths give the payload and its SHA-256."""
    payload, parts = case
    found = receive_payload(iter(parts), len(payload))
    assert found == (payload, hashlib.sha256(payload).hexdigest())


@given(divided(), st.integers(1, 5000))
def test_gather_fewer_or_more_than_announced_is_refused(case, off):
    """One byte too few or too many, wherever the frames end, and no payload is given."""
    payload, parts = case
    for size in (len(payload) + off, len(payload) - off):
        if size >= 0:
            with pytest.raises(ProtocolError, match=f"payload of {size} bytes was announced"):
                receive_payload(iter(parts), size)


def test_gather_takes_no_frame_after_too_many():
    """The first frame beyond the size ends it: whoever sends without end fills no memory."""
    asked = []

    def endless():
        while True:
            asked.append(1)
            yield b"12345"

    with pytest.raises(ProtocolError, match="12 bytes was announced, 15 or more"):
        receive_payload(endless(), 12)
    assert len(asked) == 3


def test_gather_passes_on_what_cuts_the_stream():
    """A line that breaks in the middle gives its own error, and no part of a payload."""

    def cut():
        yield b"12345"
        message = "the line is gone"
        raise ConnectionError(message)

    with pytest.raises(ConnectionError):
        receive_payload(cut(), 10)


@given(PAYLOADS, st.integers(1, 400))
def test_chunks_are_the_payload_and_none_is_too_long(payload, size):
    """Chunks in a row are the payload; all but the last are full, and none is empty."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(frames, "CHUNK", size)
        parts = list(split_payload(payload))
    assert b"".join(parts) == payload
    assert all(len(part) == size for part in parts[:-1])
    assert all(0 < len(part) <= size for part in parts[-1:])


@given(stamp=PAYLOADS, signature=PAYLOADS, size=st.integers(0, 2**63))
def test_words_are_read_as_they_were_written(stamp, signature, size):
    """Stamp, signature and size come back; the frame is one text of JSON."""
    frame = write_stamp_frame(stamp, signature, size)
    assert read_stamp_frame(frame) == (stamp, signature, size)
    assert json.loads(frame).keys() == {"stamp", "signature", "size"}


@given(stamp=PAYLOADS, payload=PAYLOADS)
def test_request_frames_are_undone_by_words_and_gather(stamp, payload):
    """A request goes through its frames unchanged, words first."""
    sent = request_frames(Envelope(stamp=stamp, signature=b"s", payload=payload))
    first, signature, size = read_stamp_frame(next(sent))
    assert (first, signature) == (stamp, b"s")
    assert receive_payload(sent, size).payload == payload


@given(st.one_of(PAYLOADS, st.text(max_size=200).map(str.encode)))
def test_words_of_any_bytes_are_refused(frame):
    """Bytes that are no words raise a ProtocolError and nothing else."""
    with pytest.raises(ProtocolError):
        read_stamp_frame(frame)


WHOLE = {"stamp": "c3RhbXA=", "signature": "c2lnbg==", "size": 3}
ODD = {
    **{f"without {name}": {k: v for k, v in WHOLE.items() if k != name} for name in WHOLE},
    **{f"{name} is {value!r}": WHOLE | {name: value}
       for name in ("stamp", "signature") for value in (None, 7, ["c3"], "c", "c3R!bXA=", "é")},
    **{f"size is {value!r}": WHOLE | {"size": value} for value in (None, "3", 3.0, True, -1, [3])},
    "a list": [*WHOLE.values()],
    "a text": "stamp",
    "nothing": None,
}  # fmt: skip


@pytest.mark.parametrize("kind", ODD)
def test_words_of_another_form_are_refused(kind):
    """A field is missing, of another type, not base64, or the size is no number of bytes."""
    assert read_stamp_frame(json.dumps(WHOLE).encode()) == (b"stamp", b"sign", 3)
    with pytest.raises(ProtocolError):
        read_stamp_frame(json.dumps(ODD[kind]).encode())


@pytest.mark.parametrize("frame", [b"", b"\xff", b"[" * 100_000, b'{"size": ' + b"9" * 9999 + b"}"])
def test_words_that_are_no_json_are_refused(frame):
    """No frame, no text, endless nesting and endless digits are refused like any other."""
    with pytest.raises(ProtocolError, match="not the words of an envelope"):
        read_stamp_frame(frame)


def test_words_refused_write_no_line_of_a_log():
    """A refusal repeats at most 20 signs of what came, and none that ends a line."""
    for tree in (WHOLE | {"stamp": ["\n" * 999]}, WHOLE | {"size": "\n" * 999}, ["\n" * 999]):
        with pytest.raises(ProtocolError) as caught:
            read_stamp_frame(json.dumps(tree).encode())
        assert "\n" not in str(caught.value)
        assert len(str(caught.value)) < 120


def test_address_of_a_path_is_absolute_and_short(tmp_path, monkeypatch):
    """At most 100 bytes, letters of several bytes counted so; a longer one names the setting."""
    monkeypatch.chdir(tmp_path)
    assert socket_address("agent.sock") == f"unix:{tmp_path}/agent.sock"
    longest = "/" + "a" * (LONGEST_PATH - 1)
    assert socket_address(longest) == f"unix:{longest}"
    for path in (longest + "a", "/" + "é" * 50):
        with pytest.raises(ConfigError, match=r"agent\.socket /.*at most 100 bytes, got 101"):
            socket_address(path)
