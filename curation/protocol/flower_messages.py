"""Convert plain messages to Flower's records and back, as a simulation carries them.

A message is two records: ``message`` (text) and ``arrays``.
"""

from flwr.app import ConfigRecord, RecordDict

from fedwinnow.curation.errors import ProtocolError
from fedwinnow.curation.protocol import messages, wire
from fedwinnow.curation.protocol.flower_records import array_record, read_arrays


def to_records(message: messages.Message) -> RecordDict:
    """Convert a message to records, unencrypted."""
    text, arrays = wire.to_arrays(message)
    return RecordDict({"message": ConfigRecord({"text": text}), "arrays": array_record(arrays)})


def read_message(content: RecordDict) -> messages.Message:
    """Read the unencrypted message in records.

    Raises:
        ProtocolError: they hold none.
    """
    try:
        text = str(content.config_records["message"]["text"])
        arrays = read_arrays(content.array_records["arrays"])
    except (KeyError, ValueError, TypeError) as error:
        message = f"records are not those of a message ({type(error).__name__})"
        raise ProtocolError(message) from error
    return wire.from_arrays(text, arrays)
