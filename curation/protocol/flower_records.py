"""Convert envelopes and arrays to Flower's records and back, at both ends of the transport.

An envelope is two records: ``envelope`` holds stamp and signature, ``payload`` one array of bytes,
the same for every site, so that Flower uploads a broadcast once. Nothing here loads torch: Flower
starts a process for each message, and a relay must be up at once.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict

from fedwinnow.curation.errors import ProtocolError
from fedwinnow.curation.protocol.envelope import Envelope

Arrays = Mapping[str, np.ndarray[Any, np.dtype[Any]]]


def envelope_records(envelope: Envelope, payload: ArrayRecord | None = None) -> RecordDict:
    """Convert an envelope to records; ``payload`` is its payload's record if already made."""
    words = ConfigRecord({"stamp": envelope.stamp, "signature": envelope.signature})
    return RecordDict({"envelope": words, "payload": payload or payload_record(envelope.payload)})


def payload_record(payload: bytes) -> ArrayRecord:
    """Convert a payload to a record of one array of bytes."""
    return array_record({"payload": np.frombuffer(payload, dtype=np.uint8)})


def read_envelope(content: RecordDict) -> Envelope:
    """Read the envelope in records.

    Raises:
        ProtocolError: they hold none.
    """
    try:
        words = content.config_records["envelope"]
        payload = content.array_records["payload"]["payload"].numpy()
        stamp, signature = words["stamp"], words["signature"]
    except (KeyError, ValueError, TypeError) as error:
        message = f"records are not those of an envelope ({type(error).__name__})"
        raise ProtocolError(message) from error
    whole = isinstance(stamp, bytes) and isinstance(signature, bytes)
    if not whole or payload.dtype != np.uint8 or payload.ndim != 1:
        message = "records are not those of an envelope (wrong types)"
        raise ProtocolError(message)
    return Envelope(stamp=stamp, signature=signature, payload=payload.tobytes())  # type: ignore[arg-type]  # checked above


def array_record(arrays: Arrays) -> ArrayRecord:
    """Convert named arrays to Flower's record, in their order."""
    return ArrayRecord({key: Array(array) for key, array in arrays.items()})


def read_arrays(record: ArrayRecord) -> dict[str, np.ndarray[Any, np.dtype[Any]]]:
    """Return the named arrays of a record, in its order."""
    return {key: array.numpy() for key, array in record.items()}


def content_bytes(content: RecordDict) -> int:
    """Return the payload of a message in bytes: texts and arrays, without Flower's own envelope."""
    text = sum(
        len(value if isinstance(value, bytes) else str(value))
        for record in content.config_records.values()
        for value in record.values()
    )
    arrays = sum(
        len(array.data) for record in content.array_records.values() for array in record.values()
    )
    return text + arrays
