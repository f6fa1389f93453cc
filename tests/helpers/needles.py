"""What must not leave a silo, in every form that the wire test looks for.

In raw bytes a pattern has at least 8 bytes, so that nothing is found by chance (2⁻⁶⁴ each): a text
in six encodings, a text as tokens, a score as float64, two scores in a row as float32, four in a
row as float16, each in both byte orders, in the silo's own order and sorted. Where an array or a
decimal says what a number is, a single score counts, in any of the three precisions.
"""

import base64
import json
import re
import struct
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

_DECIMAL = re.compile(rb"-?\d+\.\d+(?:[eE][-+]?\d+)?")
_SHORTEST = 12
"""Characters of a text at least: shorter ones stand in public texts as well."""


def telling(values: Iterable[float]) -> np.ndarray:
    """Values that are no round numbers: those are found anywhere."""
    array = np.array([v for v in values if np.isfinite(v)], dtype=np.float64)
    return array[[float(f"{v:.4g}") != v for v in array]]


def forms(text: str) -> Iterator[bytes]:
    """A text as it might stand in bytes."""
    yield text.encode()
    yield json.dumps(text)[1:-1].encode()
    yield text.encode("utf-16-le")
    yield text.encode("utf-16-be")
    yield text.encode().hex().encode()
    for shift in range(3):  # base64 depends on where the text begins; its ends depend on neighbours
        coded = base64.b64encode(b"\0" * shift + text.encode())
        yield coded[4 if shift else 0 : -4]


def tokens(numbers: Iterable[int]) -> Iterator[bytes]:
    """A text as token numbers of three sizes."""
    row = np.array(list(numbers))
    for kind in ("<i2", "<i4", "<i8"):
        yield row.astype(kind).tobytes()


def patterns(columns: Iterable[np.ndarray]) -> np.ndarray:
    """Every 8-byte pattern of columns of scores, as uint64."""
    found: set[bytes] = set()
    for column in columns:
        known = telling(column)
        for row in (known, np.sort(known), np.sort(known)[::-1]):
            for order in "<>":
                for form, count in (("d", 1), ("f", 2), ("e", 4)):
                    for start in range(len(row) - count + 1):
                        part = row[start : start + count]
                        if len(set(part)) == count:
                            found.add(struct.pack(f"{order}{count}{form}", *part))
    return np.array(sorted(int.from_bytes(p, "little") for p in found), dtype=np.uint64)


@dataclass(frozen=True, slots=True, kw_only=True)
class Needles:
    """What is looked for."""

    texts: Mapping[bytes, str]
    """Form → what it is a form of."""
    runs: np.ndarray
    """Patterns of 8 bytes, ascending."""
    single: np.ndarray
    """Scores that may not stand anywhere as a number, ascending, in all three precisions."""
    decimals: frozenset[bytes]
    """The same as texts of five to seventeen digits."""

    @classmethod
    def of(
        cls,
        texts: Mapping[str, str],
        columns: Mapping[str, np.ndarray],
        deciding: np.ndarray,
        sequences: Mapping[str, Iterable[int]],
        public: Iterable[float] = (),
    ) -> "Needles":
        """Needles of a federation.

        Args:
            texts: Secret text → what it is.
            columns: Every private column of scores and signals, in the silo's order.
            deciding: Scores that may not even stand alone.
            sequences: What it is → token numbers.
            public: Values that belong to PUBLIC samples as well, so that they may leave.
        """
        found = {f: what for t, what in texts.items() if len(t) >= _SHORTEST for f in forms(t)}
        found |= {f: f"tokens of {what}" for what, row in sequences.items() for f in tokens(row)}
        secret = np.setdiff1d(telling(deciding), np.array(list(public), dtype=np.float64))
        precisions = [telling(secret.astype(f"f{size}").astype(np.float64)) for size in (8, 4, 2)]
        decimals = {str(v) for row in precisions for v in row}
        decimals |= {f"{v:.{digits}f}" for v in secret for digits in range(5, 18)}
        decimals |= {f"{v:.{digits}g}" for v in secret for digits in range(5, 18)}
        return cls(
            texts=found,
            runs=patterns(columns.values()),
            single=np.unique(np.concatenate(precisions)),
            decimals=frozenset(d.encode() for d in decimals if len(d.strip("-0.")) >= 5),
        )

    def in_bytes(self, stream: bytes) -> list[str]:
        """What stands in raw bytes."""
        found = [what for form, what in self.texts.items() if form in stream]
        for offset in range(8):
            whole = (len(stream) - offset) // 8
            view = np.frombuffer(stream, "<u8", count=max(whole, 0), offset=offset)
            found += [f"score pattern {int(v):016x}" for v in view[np.isin(view, self.runs)]]
        return found + [
            f"decimal {d.decode()}" for d in _DECIMAL.findall(stream) if d in self.decimals
        ]

    def in_arrays(self, arrays: Mapping[str, np.ndarray]) -> list[str]:
        """Which arrays hold a single score as a number."""
        found = []
        for name, array in arrays.items():
            values = array.astype(np.float64).ravel()
            found += [f"score {v!r} in {name}" for v in values[np.isin(values, self.single)]]
        return found
