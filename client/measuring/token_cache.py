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
import json
import logging
import shutil
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
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
from fedwinnow.curation.tokens.answer_spans import Span
from fedwinnow.curation.tokens.tokenization import BLOCK, Encoding, encode_samples
from fedwinnow.curation.versions import versions

logger = logging.getLogger(__name__)

Array = np.ndarray[Any, np.dtype[Any]]

_DTYPES = {
    "crc32": "uint32",
    "earlier": "int64",
    "refusals": "uint8",
    "spans": "int64",
    "tokens": "int32",
}
"""Arrays of a file: checksum of the others; the earlier answers that are learnt, each as sample,
begin, end of body and end; why the chat template refuses samples, as JSON; for each sample where
its tokens end, its response starts and its body ends; the tokens of all samples, one after
another."""


def cached_encodings(
    loaded: LoadedModel, samples: Iterable[Sample], options: PassOptions
) -> list[Encoding]:
    """Return the tokens of every sample, as ``encode`` does; from disk where they are cached.

    Samples are read block by block, and only their tokens are held. A warning counts the samples
    that the chat template refuses, and says why it does the first.

    Raises:
        ModelError: the chat template refuses the system prompt.
        OutputError: a block cannot be written.
    """
    found = [encoding for block in _blocks(samples) for encoding in _block(loaded, block, options)]
    _tell_refusals(found)
    return found


def _tell_refusals(encodings: Sequence[Encoding]) -> None:
    """Log how many samples the chat template refuses, and why it does the first."""
    why = [one.refusal for one in encodings if one.refusal]
    if why:
        logger.warning(
            "the model's chat template refuses %d of %d samples; the first: %s",
            len(why), len(encodings), why[0],
        )  # fmt: skip


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
    plain = Sample(id="", prompt="?", response="!")
    probes = (plain, replace(plain, tools="[]"))  # a tokenizer may have a template for tools
    now = [
        found.tokens.tolist()
        for found in encode_samples(loaded.tokenizer, probes, max_length=10**6, chat=loaded.chat)
    ]
    digest = hashlib.sha256()
    software = str(sorted(versions().items()))
    made = (loaded.vocabulary, str(now), software, str(options.max_length))
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
    """Return the tokens, spans and refusals of a block as a safetensors file."""
    ends = np.cumsum([len(one.tokens) for one in encodings])
    starts_and_bodies = [(one.response_start, one.body_end) for one in encodings]
    earlier = [(row, *span) for row, one in enumerate(encodings) for span in one.earlier]
    refusals = {row: one.refusal for row, one in enumerate(encodings) if one.refusal}
    arrays: dict[str, Array] = {
        "earlier": np.array(earlier, dtype=np.int64).reshape(len(earlier), 4),
        "refusals": np.frombuffer(json.dumps(refusals).encode(), dtype=np.uint8),
        "spans": np.column_stack([ends, np.array(starts_and_bodies)]).astype(np.int64, order="C"),
        "tokens": np.concatenate([one.tokens for one in encodings]).astype(np.int32),
    }
    return save({"crc32": np.array([_checksum(arrays)], dtype=np.uint32), **arrays})


def _checksum(arrays: Mapping[str, Array]) -> int:
    found = 0
    for name in sorted(_DTYPES.keys() - {"crc32"}):
        found = zlib.crc32(arrays[name].tobytes(), found)
    return found


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
    earlier: dict[int, list[Span]] = {}
    for row, *span in arrays["earlier"].tolist():
        earlier.setdefault(row, []).append(Span(*span))
    refusals = json.loads(arrays["refusals"].tobytes())
    return [
        Encoding(
            tokens=tokens[begin:end],
            response_start=start,
            body_end=body,
            earlier=tuple(earlier.get(row, ())),
            refusal=refusals.get(str(row), ""),
        )
        for row, (begin, (end, start, body)) in enumerate(zip(begins, spans, strict=True))
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
    if arrays["earlier"].shape[1:] != (4,):
        return None
    return arrays if arrays["crc32"][0] == _checksum(arrays) else None
