"""The egress ledger: durable, chained, held by one process; any change shows."""

import json
import os
import subprocess
import sys
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedwinnow.client.budget import ledger_chain
from fedwinnow.client.budget.ledger import Entry, Ledger
from fedwinnow.client.budget.ledger_chain import file_of, read_chain, verify_chain
from fedwinnow.curation.errors import OutputError
from fedwinnow.curation.protocol import wire
from fedwinnow.curation.protocol.header import Header
from fedwinnow.curation.protocol.replies import KeptReply, Receipt, Refusal

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
    lines = [tree for _, tree in read_chain(tmp_path)]
    reply = KeptReply(header=HEADER, site="law", kept={"curated": 1})
    assert lines[1]["size"] == len(wire.encode(reply))
    assert lines[1]["kind"] == "KeptReply"
    assert lines[1]["previous"] == lines[0]["hash"] == heads[0]
    assert lines[1]["epsilon"] is None
    assert verify_chain(tmp_path) == []
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
        "a key twice": lambda lines: [*lines[:3], lines[3].replace("{", '{"kind": "Receipt", ', 1)],
        "other spaces": lambda lines: [*lines[:3], lines[3].replace(": ", ":  ", 1)],
        "a line without fields": lambda lines: [*lines[:3], '{"hash": "0"}\n'],
        "two lines added": lambda lines: [*lines, *added(lines[-1], 2)],
    }


def added(line, number):
    """Forged lines whose own hashes and links are right."""
    tree, made = json.loads(line), []
    for _ in range(number):
        tree["previous"] = tree["hash"]
        tree["hash"] = ledger_chain.hash_of(tree)
        made.append(ledger_chain.line_of(tree).decode())
    return made


def other(line):
    """A line whose own hash is right, but which follows another one."""
    tree = json.loads(line)
    tree["previous"] = "0" * 64
    tree["hash"] = ledger_chain.hash_of(tree)
    return ledger_chain.line_of(tree).decode()


@pytest.mark.parametrize("change", changes())
def test_ledger_shows_any_change(tmp_path, change):
    """Whatever is changed, deleted, reordered or cut is found, and the agent does not start."""
    filled(tmp_path)
    lines = file_of(tmp_path).read_text().splitlines(keepends=True)
    file_of(tmp_path).write_text("".join(changes()[change](lines)))
    assert verify_chain(tmp_path) != []
    with pytest.raises(OutputError, match="changed"):
        Ledger.open(tmp_path)


@settings(max_examples=60, deadline=None)
@given(place=st.integers(0, 10_000), bit=st.integers(0, 7))
def test_ledger_shows_any_flipped_bit(tmp_path_factory, place, bit):
    """No single bit of the file can be flipped unseen."""
    folder = tmp_path_factory.mktemp("ledger")
    filled(folder, 2)
    data = bytearray(file_of(folder).read_bytes())
    data[place % len(data)] ^= 1 << bit
    file_of(folder).write_bytes(bytes(data))
    assert verify_chain(folder) != []


def test_ledger_goes_on_after_a_crash_in_mid_line(tmp_path):
    """Half a last line never left: it is moved aside, and the chain goes on."""
    filled(tmp_path, 3)
    with file_of(tmp_path).open("ab") as file:
        file.write(b'{"time": "2026-')
    ledger = Ledger.open(tmp_path)
    ledger.append(entry())
    ledger.close()
    assert verify_chain(tmp_path) == []
    assert len(list(read_chain(tmp_path))) == 4
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


def test_ledger_shows_a_head_that_was_changed_or_deleted(tmp_path):
    """Without its head a cut at the end would not show, so a missing head is a finding."""
    filled(tmp_path, 1)
    head = ledger_chain.head_of(tmp_path)
    told = head.read_bytes()
    head.unlink()
    assert "missing" in verify_chain(tmp_path)[0]
    head.write_text("?")
    assert "changed" in verify_chain(tmp_path)[0]
    head.write_bytes(told.replace(b'"lines": 1', b'"lines": 0'))
    file_of(tmp_path).write_bytes(b"")
    head.write_bytes(told)
    assert verify_chain(tmp_path) == ["1 lines are missing at the end"]


def test_ledger_rolls_back_where_the_head_cannot_be_written(tmp_path, monkeypatch):
    """A disk that is full for the head alone, and twice: no line stands that did not leave."""
    ledger = Ledger.open(tmp_path)
    ledger.append(entry())

    def full(*_):
        message = "no space"
        raise OutputError(message)

    with monkeypatch.context() as patch:
        patch.setattr("fedwinnow.client.budget.ledger._write_head", full)
        for _ in range(2):
            with pytest.raises(OutputError, match="nothing leaves"):
                ledger.append(entry())
    assert ledger.released("KeptReply") == {"d": {"q": "r"}}
    ledger.append(entry())
    ledger.close()
    assert verify_chain(tmp_path) == []
    Ledger.open(tmp_path).close()


def test_ledger_verifies_while_the_agent_writes(tmp_path, monkeypatch):
    """Lines that are added between the reading of the head and of the lines are no finding."""
    ledger = Ledger.open(tmp_path)
    ledger.append(entry())
    plain = ledger_chain.read_chain

    def meanwhile(folder):
        yield from plain(folder)
        ledger.append(entry())

    def before(folder):
        ledger.append(entry())
        ledger.append(entry())
        yield from plain(folder)

    for reading in (meanwhile, before):
        monkeypatch.setattr(ledger_chain, "read_chain", reading)
        assert verify_chain(tmp_path) == []
    ledger.close()


def test_ledger_knows_its_places(tmp_path):
    """What left at a run's phase, round and arm; a refusal there is nothing."""
    ledger = Ledger.open(tmp_path)
    ledger.append(entry(request="first"))
    no = Refusal(header=HEADER, site="law", clause="clusters", reason="no")
    ledger.append(Entry.of(no, wire.encode(no), request="second", recipient="f"))
    assert ledger.at(("r", "select", 0, "")) == {"first"}
    assert ledger.at(("r", "select", 1, "")) == ledger.at(("s", "select", 0, "")) == set()
    ledger.close()


def test_ledger_is_held_by_one_process(tmp_path):
    """A second opener is refused, here and in another process; after the first ended it may."""
    ledger = Ledger.open(tmp_path)
    with pytest.raises(OutputError, match="another agent"):
        Ledger.open(tmp_path)
    lock = str(tmp_path / "egress.lock")
    code = f"import fcntl; fcntl.flock(open({lock!r}), fcntl.LOCK_EX | fcntl.LOCK_NB)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "BlockingIOError" in done.stderr
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
    assert verify_chain(tmp_path) == []


def charge(request="q", run="r", data="d"):
    return Entry.charge(Header(run=run, phase="select"), "KeptReply", request=request,
                        recipient="f", data=data, anchors="a")  # fmt: skip


def test_ledger_remembers_over_a_restart(tmp_path):
    """What the policy counts is what the file holds, charges and releases alike, each once."""
    ledger = Ledger.open(tmp_path)
    lines = (charge(), entry(), charge("p", "s"), entry(request="old"), charge(data="e"))
    for line in lines:
        ledger.append(line)
    ledger.close()
    assert verify_chain(tmp_path) == []
    ledger = Ledger.open(tmp_path)
    counted = {"d": {"q": "r", "p": "s", "old": "r"}, "e": {"q": "r"}}
    assert ledger.released("KeptReply") == counted
    assert ledger.released("SummaryReply") == {}
    assert ledger.at(("s", "select", 0, "")) == {"p"}
    ledger.close()


def test_ledger_counts_a_hundred_thousand_lines_at_once(tmp_path):
    """Edge: what was released of a kind is looked up, not searched for line by line."""
    ledger = Ledger.open(tmp_path)
    place = {"run": "r", "phase": "select", "round": 0, "arm": "", "kind": "KeptReply", "hash": ""}
    for number in range(100_000):
        ledger._remember(place | {"request": f"q-{number}", "data": f"d-{number % 50}"})
    begun = time.perf_counter()
    for _ in range(100):
        assert sum(map(len, ledger.released("KeptReply").values())) == 100_000
    assert time.perf_counter() - begun < 0.1  # 100 requests
    ledger.close()


def test_empty_ledger_is_whole(tmp_path):
    """Edge: no file and an opened, unused ledger verify."""
    assert verify_chain(tmp_path) == []
    ledger = Ledger.open(tmp_path)
    assert verify_chain(tmp_path) == []
    receipt = Receipt(header=HEADER, site="law")
    ledger.append(Entry.of(receipt, wire.encode(receipt), request="q", recipient="f"))
    ledger.close()
    assert verify_chain(tmp_path) == []
