"""A bench on which a site's reply is made wrong in one way, then encrypted and signed as usual."""

import json
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from fake_federation import SITES
from safetensors.numpy import save

from fedwinnow.curation.datatypes import ScoreSummary
from fedwinnow.curation.protocol import messages as m
from fedwinnow.curation.protocol import wire
from fedwinnow.curation.protocol.envelope import Envelope, encrypt, sign
from fedwinnow.curation.protocol.keys import PrivateKey, PublicKey

KEYS = {name: PrivateKey.new() for name in ("coordinator", "stranger", *SITES)}
BAD = "beta"


@dataclass
class Bench:
    """What the site BAD was asked, what it would say honestly, and how it may say it."""

    request: m.Request
    reply: m.Reply
    sequence: int

    def envelope(
        self,
        plain: bytes,
        *,
        key: str = BAD,
        reader: PublicKey = KEYS["coordinator"].public,
        open_: bool = False,
        **words: object,
    ) -> Envelope:
        """Any payload, encrypted, signed and stamped in any way."""
        header = self.request.header
        stamp = {"site": BAD, "run": header.run, "phase": header.phase, "sequence": self.sequence}
        payload = plain if open_ else encrypt(plain, reader)
        return sign(KEYS[key], payload, **(stamp | words))

    def restamped(self, **words: object) -> Envelope:
        """The honest content under a stamp that our own code would not make, truly signed."""
        envelope = self.honest()
        text = json.dumps({**json.loads(envelope.stamp), **words}).encode()
        signer = Ed25519PrivateKey.from_private_bytes(KEYS[BAD].signing)
        return replace(envelope, stamp=text, signature=signer.sign(text))

    def honest(self, **how: object) -> Envelope:
        """The honest content, stamped or encrypted in another way."""
        return self.envelope(wire.encode(self.reply), **how)

    def saying(self, **changes: object) -> Envelope:
        """A well-formed message with other fields."""
        return self.envelope(wire.encode(replace(self.reply, **changes)))

    def headed(self, **changes: object) -> Envelope:
        """The honest content under another header."""
        return self.saying(header=replace(self.reply.header, **changes))

    def taken_apart(self, change: Callable[[dict, dict], None]) -> Envelope:
        """The message with changed text or arrays, as no encoder of ours would write it."""
        text, arrays = wire.to_arrays(self.reply)
        tree = json.loads(text)
        arrays = {name: array.copy() for name, array in arrays.items()}
        change(tree, arrays)
        return self.envelope(save(arrays, metadata={"message": json.dumps(tree)}))

    def adapter(self, **changes: object) -> Envelope:
        """A trained adapter with other factors."""
        return self.saying(adapter=replace(self.reply.adapter, **changes))

    def factors(self, change: Callable[[torch.Tensor], torch.Tensor], which: str) -> Envelope:
        """Each factor A or B changed, or of both."""
        held = {one: getattr(self.reply.adapter, one) for one in which}
        return self.adapter(
            **{
                one: {name: change(f) for name, f in factors.items()}
                for one, factors in held.items()
            }
        )

    def table(self, **changes: object) -> Envelope:
        """Public rows with another table."""
        return self.saying(table=replace(self.reply.table, **changes))

    def summary(
        self, edges: object = None, counts: object = None, largest_merged: float = 0.0
    ) -> Envelope:
        """Another histogram."""
        old = self.reply.summary
        edges = old.edges if edges is None else np.array(edges, dtype=np.float64)
        counts = old.counts if counts is None else np.array(counts, dtype=np.float64)
        return self.saying(
            summary=ScoreSummary(edges=edges, counts=counts, largest_merged=largest_merged)
        )


def changed(envelope: Envelope, **parts: Callable[[bytes], bytes]) -> Envelope:
    """An envelope whose bytes were changed on the way."""
    return replace(envelope, **{name: f(getattr(envelope, name)) for name, f in parts.items()})


def flip(data: bytes) -> bytes:
    """One bit of the middle byte changed."""
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]


def poison(value: float) -> Callable[[dict, dict], None]:
    """Put a value into the first number of every array of floats."""

    def change(_tree: dict, arrays: dict) -> None:
        for array in arrays.values():
            if array.dtype.kind == "f" and array.size:
                array.flat[0] = value

    return change


def field_of(name: str, value: object) -> Callable[[dict, dict], None]:
    """Set a field of the message's text."""
    return lambda tree, _arrays: tree["body"].__setitem__(name, value)


def cut_rows(_tree: dict, arrays: dict) -> None:
    """Leave out the last row of every array."""
    for name, array in arrays.items():
        arrays[name] = array[:-1].copy()


def as_double(_tree: dict, arrays: dict) -> None:
    """Another number format than announced."""
    for name, array in arrays.items():
        arrays[name] = array.astype(np.float64)


def whole_numbers(tree: dict, arrays: dict) -> None:
    """Factors of whole numbers, and said so."""
    for name, array in arrays.items():
        arrays[name] = array.astype(np.int32)
    for factors in (tree["body"]["adapter"]["a"], tree["body"]["adapter"]["b"]):
        for leaf in factors.values():
            leaf["dtype"] = "int32"
