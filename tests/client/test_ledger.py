"""The egress ledger: durable, chained, held by one process; any change shows."""

import json
import os
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedwinnow.client.ledger import Entry, Ledger, file_of, read, verify
from fedwinnow.curation import wire
from fedwinnow.curation.errors import OutputError
from fedwinnow.curation.messages import Header, KeptReply, Receipt, Refusal

HEADER = Header(run="r", phase="select")


def entry(kept=3, run="r", request="q", data="d"):
    reply = KeptReply(header=Header(run=run, phase="select"), site="law", kept={"curated": kept})
    return Entry.of(
        reply, wire.encode(reply), request=request, recipient="f" * 32, data=data, anchors="a"
    )


def filled(folder, number=4):
    """A closed ledger of some entries."""
    ledger = Ledger.open(folder)
    heads = [ledger.append(entry(kept=i)) for i in range(number)]
    ledger.close()
    return heads


def test_ledger_reads_back_what_was_entered(tmp_path):
    """Every line holds what left: kind, bytes, hash, recipient; nothing of the content."""
    heads = filled(tmp_path, 2)
    lines = [tree for _, tree in read(tmp_path)]
    reply = KeptReply(header=HEADER, site="law", kept={"curated": 1})
    assert lines[1]["size"] == len(wire.encode(reply))
    assert lines[1]["kind"] == "KeptReply"
    assert lines[1]["previous"] == lines[0]["hash"] == heads[0]
    assert lines[1]["epsilon"] is None
    assert verify(tmp_path) == []
    assert (file_of(tmp_path).stat().st_mode & 0o077) == 0


def test_ledger_entry_lists_arrays_and_names_a_refusal():
    """An entry says dtype and shape of each array, and of a refusal its clause."""
    refusal = Refusal(header=HEADER, site="law", clause="policy.max_rank", reason="no")
    made = Entry.of(refusal, wire.encode(refusal), request="q", recipient="f")
    assert made.kind == "Refusal:policy.max_rank"
    assert made.arrays == {}


def changes():
    """Ways to tamper with a ledger of lines."""
    return {
        "a number": lambda lines: [lines[0].replace('"size": ', '"size": 1'), *lines[1:]],
        "a kind": lambda lines: [*lines[:2], lines[2].replace("KeptReply", "Receipt"), lines[3]],
        "first line gone": lambda lines: lines[1:],
        "middle line gone": lambda lines: [lines[0], *lines[2:]],
        "last line gone": lambda lines: lines[:-1],
        "two swapped": lambda lines: [lines[1], lines[0], *lines[2:]],
        "one twice": lambda lines: [*lines, lines[-1]],
        "a line of another ledger": lambda lines: [*lines[:3], other(lines[3])],
        "no JSON": lambda lines: [*lines[:3], "what?\n"],
        "everything gone": lambda lines: [],
    }


def other(line):
    """A line whose own hash is right, but which follows another one."""
    from fedwinnow.client import ledger

    tree = json.loads(line)
    tree["previous"] = "0" * 64
    tree["hash"] = ledger._hash(tree)
    return json.dumps(tree) + "\n"


@pytest.mark.parametrize("change", changes())
def test_ledger_shows_any_change(tmp_path, change):
    """Whatever is changed, deleted, reordered or cut is found, and the agent does not start."""
    filled(tmp_path)
    lines = file_of(tmp_path).read_text().splitlines(keepends=True)
    file_of(tmp_path).write_text("".join(changes()[change](lines)))
    assert verify(tmp_path) != []
    with pytest.raises(OutputError, match="changed"):
        Ledger.open(tmp_path)


@settings(max_examples=60, deadline=None)
@given(place=st.integers(0, 10_000), bit=st.integers(0, 7))
def test_ledger_shows_any_flipped_bit(tmp_path_factory, place, bit):
    """No single bit of the file can be flipped unseen (a line end within JSON's freedom aside)."""
    folder = tmp_path_factory.mktemp("ledger")
    filled(folder, 2)
    data = bytearray(file_of(folder).read_bytes())
    place %= len(data)
    before = [tree for _, tree in read(folder)]
    data[place] ^= 1 << bit
    file_of(folder).write_bytes(bytes(data))
    if verify(folder) == []:  # a space that became another kind of space says the same
        assert [tree for _, tree in read(folder)] == before


def test_ledger_goes_on_after_a_crash_in_mid_line(tmp_path):
    """Half a last line never left: it is moved aside, and the chain goes on."""
    filled(tmp_path, 3)
    with file_of(tmp_path).open("ab") as file:
        file.write(b'{"time": "2026-')
    ledger = Ledger.open(tmp_path)
    ledger.append(entry())
    ledger.close()
    assert verify(tmp_path) == []
    assert len(list(read(tmp_path))) == 4
    assert (tmp_path / "egress.torn").read_bytes().startswith(b'{"time"')


def test_ledger_goes_on_after_a_crash_before_the_head(tmp_path):
    """A whole line whose head was not yet written is the new head."""
    filled(tmp_path, 3)
    head = (tmp_path / "egress.head").read_bytes()
    ledger = Ledger.open(tmp_path)
    last = ledger.append(entry())
    ledger.close()
    (tmp_path / "egress.head").write_bytes(head)
    again = Ledger.open(tmp_path)
    assert again.head == last
    again.close()


def test_ledger_is_held_by_one_process(tmp_path):
    """A second opener is refused, here and in another process; after the first ended it may."""
    ledger = Ledger.open(tmp_path)
    with pytest.raises(OutputError, match="another agent"):
        Ledger.open(tmp_path)
    code = (
        "from pathlib import Path; from fedwinnow.client.ledger import Ledger; "
        f"Ledger.open(Path({str(tmp_path)!r}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "another agent" in done.stderr
    ledger.close()
    Ledger.open(tmp_path).close()


def test_ledger_enters_nothing_by_halves_on_a_full_disk(tmp_path, monkeypatch):
    """Where the disk is full the append fails, and the file is as before."""
    ledger = Ledger.open(tmp_path)
    ledger.append(entry())
    before = file_of(tmp_path).read_bytes()

    def full(descriptor):
        raise OSError(28, "No space left on device", descriptor)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OutputError, match="nothing leaves"):
        ledger.append(entry())
    monkeypatch.undo()
    assert file_of(tmp_path).read_bytes() == before
    ledger.append(entry())
    ledger.close()
    assert verify(tmp_path) == []


def test_ledger_remembers_over_a_restart(tmp_path):
    """What the policy counts is what the file holds, not what the process saw."""
    filled(tmp_path, 3)
    ledger = Ledger.open(tmp_path)
    assert len(ledger.released("KeptReply", anchors="a")) == 3
    assert ledger.released("KeptReply", anchors="other") == []
    assert ledger.released("SummaryReply", anchors="a") == []
    ledger.close()


def test_empty_ledger_is_whole(tmp_path):
    """Edge: no file and an opened, unused ledger verify."""
    assert verify(tmp_path) == []
    ledger = Ledger.open(tmp_path)
    assert verify(tmp_path) == []
    receipt = Receipt(header=HEADER, site="law")
    ledger.append(Entry.of(receipt, wire.encode(receipt), request="q", recipient="f"))
    ledger.close()
    assert verify(tmp_path) == []
