"""Cache a silo's tokens on its own disk, so that each text is tokenised once in a run.

One safetensors file holds the tokens of a block of 1,024 samples, in data order. Its name is a
SHA-256 over all that they depend on: the tokenizer and its chat template, a prompt rendered now (a
template may hold the date), the system prompt, the longest sample, the versions of the software,
and every text. So a file is never stale: what has changed has another name. It is written under a
temporary name, then renamed, so it is whole even where two processes write it at a time.
safetensors notices a file that was cut off, our CRC-32 one that was changed; both are made anew. A
file is read at once, not mapped: a block is about 2 MB, all of it is checked, and a bad disk then
raises an error instead of a signal.

Tokens are as private as texts. The folder is the owner's alone (0700, files 0600), lies in the
folder of the run, never leaves the silo, and is removed when the run closes.
"""

import hashlib
import logging
import shutil
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from fedwinnow.client.measuring.pass_options import PassOptions
from fedwinnow.curation.atomic_files import write_private
from fedwinnow.curation.datatypes import Sample
from fedwinnow.curation.model.lora_model import LoadedModel
from fedwinnow.curation.model.tokenization import BLOCK, Encoding, prompt_tokens
from fedwinnow.curation.versions import versions

logger = logging.getLogger(__name__)

Array = np.ndarray[Any, np.dtype[Any]]

_DTYPES = {"crc32": "uint32", "spans": "int64", "tokens": "int32"}
"""Arrays of a file: checksum of the others; for each sample where its tokens end, its response
starts and its body ends; the tokens of all samples, one after another."""


def cached_encodings(
    loaded: LoadedModel, samples: Iterable[Sample], options: PassOptions
) -> list[Encoding]:
    """Return the tokens of every sample, as ``encode`` does; from disk where they are cached.

    Samples are read block by block, and only their tokens are held.

    Raises:
        ModelError: the chat template refuses a sample's turns.
        OutputError: a block cannot be written.
    """
    return [encoding for block in _blocks(samples) for encoding in _block(loaded, block, options)]


def remove_tokens(folder: Path) -> None:
    """Remove a folder of tokens; log a warning where the system does not let us."""
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
    """Return a hash of all that the block's tokens depend on, as 32 hexadecimal digits."""
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
    yield sample.train_on
    yield sample.tools
    for turn in sample.conversation:
        yield from turn


def _bytes(encodings: Sequence[Encoding]) -> bytes:
    """Return the tokens and spans of a block as a safetensors file."""
    ends = np.cumsum([len(one.tokens) for one in encodings])
    starts_and_bodies = [(one.response_start, one.body_end) for one in encodings]
    spans = np.column_stack([ends, np.array(starts_and_bodies)]).astype(np.int64, order="C")
    tokens = np.concatenate([one.tokens for one in encodings]).astype(np.int32)
    checksum = np.array([_checksum(spans, tokens)], dtype=np.uint32)
    return save({"crc32": checksum, "spans": spans, "tokens": tokens})


def _checksum(spans: Array, tokens: Array) -> int:
    return zlib.crc32(tokens.data, zlib.crc32(spans.data))


def _read(file: Path, samples: int) -> list[Encoding] | None:
    """Read what :func:`_bytes` wrote; return None where there is no such file, or no whole one."""
    try:
        data = file.read_bytes()
    except FileNotFoundError:
        return None
    arrays = _arrays(data, samples)
    if arrays is None:
        logger.warning("%s is not whole and is made anew", file.name)
        return None
    spans, tokens = arrays["spans"].tolist(), arrays["tokens"]
    begins = [0, *(end for end, _, _ in spans[:-1])]
    return [
        Encoding(tokens=tokens[begin:end], response_start=start, body_end=body)
        for begin, (end, start, body) in zip(begins, spans, strict=True)
    ]


def _arrays(data: bytes, samples: int) -> Mapping[str, Array] | None:
    """Return the arrays of a file; None where it was cut off, changed or made otherwise."""
    try:
        arrays: dict[str, Array] = load(data)
    except (SafetensorError, KeyError):  # KeyError: a type that numpy lacks
        return None
    if {name: str(array.dtype) for name, array in arrays.items()} != _DTYPES:
        return None
    if arrays["spans"].shape != (samples, 3) or arrays["crc32"].shape != (1,):
        return None
    same = arrays["crc32"][0] == _checksum(arrays["spans"], arrays["tokens"])
    return arrays if same else None
