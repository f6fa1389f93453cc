"""Write files whole or not at all: under a temporary name, flushed to the disk, then renamed."""

import contextlib
import errno
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from fedwinnow.curation.errors import OutputError
from fedwinnow.curation.process_guard import keep_at_end, remove_at_end


@contextlib.contextmanager
def replace_atomically(path: Path, *, durable: bool = True) -> Iterator[Path]:
    """Yield a temporary path that becomes ``path`` when the block ends well, else is removed.

    Without ``durable`` the file is not flushed to the disk: a crash of the machine may undo it.

    Raises:
        OutputError: the folder cannot be made or written, or the disk is full.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        path.parent.mkdir(parents=True, exist_ok=True)
        remove_at_end(temporary)  # where this process is killed meanwhile
        yield temporary
        if durable:
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        message = (
            f"{path}: cannot be written ({error.strerror or error}); "
            "free the disk or choose another folder"
        )
        raise OutputError(message) from error
    finally:
        with contextlib.suppress(OSError):  # nothing to remove where nothing could be written
            temporary.unlink(missing_ok=True)
            keep_at_end(temporary)


def write_atomically(path: Path, data: bytes, *, durable: bool = True) -> None:
    """Write bytes to a file, whole or not at all.

    Raises:
        OutputError: see :func:`replace_atomically`.
    """
    with replace_atomically(path, durable=durable) as temporary:
        temporary.write_bytes(data)


def write_private(path: Path, data: bytes, *, durable: bool = True) -> None:
    """Write bytes that only the owner may read (mode 0600 from the first byte).

    Raises:
        OutputError: see :func:`replace_atomically`.
    """
    with replace_atomically(path, durable=durable) as temporary:
        temporary.touch(mode=0o600)
        temporary.write_bytes(data)


def write_json(path: Path, tree: Mapping[str, Any], *, durable: bool = True) -> None:
    """Write strict JSON: a NaN or an infinity is an error.

    Raises:
        OutputError: see :func:`replace_atomically`.
        ValueError: a number is NaN or infinite.
    """
    text = json.dumps(tree, indent=1, ensure_ascii=False, allow_nan=False)
    write_atomically(path, text.encode() + b"\n", durable=durable)
