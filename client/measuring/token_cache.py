"""Tokens of a silo's samples on its own disk, so that each text is tokenised once in a run.

One file holds the tokens of a block of 1,024 samples, in data order. Its name is a SHA-256 over all
that they depend on: the tokenizer and its chat template, a prompt rendered now (a template may tell
the date), the system prompt, the longest sample, the versions of the software, and every text. So a
file is never stale: what has changed has another name. It is written under a temporary name, then
renamed, and it carries a checksum: one that was cut off, or that two processes wrote at a time, is
whole, or is made anew.

Tokens are texts in other letters. The folder is the owner's alone (0700, files 0600), it lies in
the folder of the run, leaves the silo as little as the data does, and goes when the run closes.
"""

import hashlib
import logging
import shutil
import zlib
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path

import numpy as np

from fedwinnow.client.measuring.pass_options import PassOptions
from fedwinnow.curation.atomic_files import write_private
from fedwinnow.curation.datatypes import Sample
from fedwinnow.curation.model.pretrained import LoadedModel
from fedwinnow.curation.model.tokenization import BLOCK, Encoding, prompt_tokens
from fedwinnow.curation.versions import versions

logger = logging.getLogger(__name__)

_MARK = 0x0F3D_701C_0001
"""First number of a file; changes with its form."""
_HEAD = 4
"""Numbers of the head: mark, samples, tokens, CRC-32 of the rest."""


def encoded(loaded: LoadedModel, samples: Iterable[Sample], options: PassOptions) -> list[Encoding]:
    """Tokens of every sample, as ``encode`` gives them; from the disk where they are there.

    Samples are read block by block, and only their tokens are held.

    Raises:
        ModelError: the chat template refuses a sample's turns.
        OutputError: a block cannot be written.
    """
    return [encoding for block in _blocks(samples) for encoding in _block(loaded, block, options)]


def forget_tokens(folder: Path) -> None:
    """Remove a folder of tokens; a warning says so where the system does not let us."""
    try:
        shutil.rmtree(folder)
    except FileNotFoundError:
        return
    except OSError as error:
        logger.warning(
            "%s: the tokens of private samples cannot be removed (%s); remove them by hand",
            folder, error.strerror or error,
        )  # fmt: skip


def _blocks(samples: Iterable[Sample]) -> Iterator[list[Sample]]:
    rest = iter(samples)
    while block := list(islice(rest, BLOCK)):
        yield block


def _block(loaded: LoadedModel, block: Sequence[Sample], options: PassOptions) -> list[Encoding]:
    def made() -> list[Encoding]:
        return list(options.encode(loaded, block))

    if options.tokens is None or not loaded.vocabulary:
        return made()
    file = options.tokens / f"{_name(loaded, block, options)}.tokens"
    found = _read(file, len(block))
    if found is None:
        found = made()
        options.tokens.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_private(file, _bytes(found), durable=False)
    return found


def _name(loaded: LoadedModel, block: Sequence[Sample], options: PassOptions) -> str:
    """What the block's tokens depend on, as 32 hexadecimal digits."""
    now = prompt_tokens(loaded.tokenizer, Sample(id="", prompt="?", response=""), "")
    digest = hashlib.sha256()
    made = (loaded.vocabulary, str(now), str(sorted(versions().items())), str(options.max_length))
    for text in (*made, options.system_prompt, *(text for one in block for text in _texts(one))):
        data = text.encode("utf-8", "surrogatepass")
        digest.update(len(data).to_bytes(8, "little"))
        digest.update(data)
    return digest.hexdigest()[:32]


def _texts(sample: Sample) -> Iterator[str]:
    yield str(len(sample.history))
    for role, content in sample.history:
        yield role
        yield content
    yield sample.prompt
    yield sample.response


def _bytes(encodings: Sequence[Encoding]) -> bytes:
    """Head, then for each sample where its tokens end, its response starts and its body ends."""
    sizes = np.cumsum([len(one.tokens) for one in encodings])
    spans = [(one.response_start, one.body_end) for one in encodings]
    rows = np.column_stack([sizes, np.array(spans)]).astype("<i8")
    tokens = np.concatenate([one.tokens for one in encodings]).astype("<i4")
    rest = rows.tobytes() + tokens.tobytes()
    head = np.array([_MARK, len(rows), len(tokens), zlib.crc32(rest)], dtype="<i8")
    return head.tobytes() + rest


def _read(file: Path, samples: int) -> list[Encoding] | None:
    """What :func:`_bytes` wrote; None where there is no such file, or no whole one."""
    try:
        data = bytearray(file.read_bytes())  # of our own, so that arrays may be written to
    except FileNotFoundError:
        return None
    head = np.frombuffer(data[: 8 * _HEAD].ljust(8 * _HEAD, b"\0"), dtype="<i8").tolist()
    rest = memoryview(data)[8 * _HEAD :]
    size = 24 * samples + 4 * head[2]
    if head[:2] != [_MARK, samples] or len(rest) != size or zlib.crc32(rest) != head[3]:
        logger.warning("%s is not whole and is made anew", file.name)
        return None
    rows = np.frombuffer(rest, dtype="<i8", count=3 * samples).reshape(samples, 3).tolist()
    tokens = np.frombuffer(rest, dtype="<i4", offset=24 * samples).astype(np.int32, copy=False)
    begins = [0, *(end for end, _, _ in rows[:-1])]
    return [
        Encoding(tokens=tokens[begin:end], response_start=start, body_end=body)
        for begin, (end, start, body) in zip(begins, rows, strict=True)
    ]
