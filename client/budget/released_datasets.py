"""Remember the samples of released data sets by salted hashes, and the atoms that they form.

``samples.npz`` holds 8 bytes of a salted hash and the atom of each sample, and which data sets hold
which atom (:mod:`fedwinnow.client.budget.sample_atoms`). What left of a data set stands in the
ledger alone, under the data set's name. A data set is on the disk before the ledger names it, so no
crash loses one; the salt and the hashes stay at the site.
"""

import hashlib
import io
import logging
import secrets
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from fedwinnow.client.budget.sample_atoms import SampleAtoms
from fedwinnow.client.data.site_data import SiteData, holdout_share
from fedwinnow.client.runs.site_run import SiteRun
from fedwinnow.curation.atomic_files import write_private
from fedwinnow.curation.errors import OutputError

logger = logging.getLogger(__name__)

HELD = ":own hold-out"
"""Ends the name of a hold-out that belongs to a data set of a store of before."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunDatasets:
    """Names of the data sets that one run's figures are computed from."""

    samples: str
    """SHA-256 over the ids of the samples that are measured, scored and trained on."""
    own_holdout: str
    """The same of the own hold-out; "" where there is none."""


@dataclass(slots=True, kw_only=True)
class ReleasedDatasets:
    """Folder that remembers the samples of released data sets."""

    folder: Path
    _salt: bytes = field(default=b"", repr=False)
    _atoms: SampleAtoms = field(default_factory=SampleAtoms.empty, repr=False)
    _named: tuple[SiteData, RunDatasets] | None = field(default=None, repr=False)
    """The last run's data and their names, as hashing a million ids takes a second. Of no other
    run: data that are held keep their copy in scratch."""
    _refined: tuple[RunDatasets, SampleAtoms] | None = field(default=None, repr=False)
    """The atoms that the last run's data sets would make."""

    @property
    def file(self) -> Path:
        """Return the path of the store."""
        return self.folder / "samples.npz"

    def identify(self, run: SiteRun) -> RunDatasets:
        """Return the names of a run's data sets."""
        if self._named is None or self._named[0] is not run.data:
            held = run.data.own_holdout.ids
            names = RunDatasets(
                samples=dataset_name(run.data.samples.ids),
                own_holdout=dataset_name(held) if held else "",
            )
            self._named = run.data, names
        return self._named[1]

    def atoms(self, run: SiteRun) -> SampleAtoms:
        """Return the atoms as a run's data sets would refine them; nothing is stored.

        Raises:
            OutputError: the store cannot be read.
        """
        self._load()
        names = self.identify(run)
        if self._refined is None or self._refined[0] != names:
            atoms = self._atoms
            for name, ids in (
                (names.samples, run.data.samples.ids),
                (names.own_holdout, run.data.own_holdout.ids),
            ):
                if name and name not in atoms.names:
                    atoms = atoms.with_dataset(name, self._hashes(ids))
            self._refined = names, atoms
        return self._refined[1]

    def store(self, run: SiteRun) -> None:
        """Store a run's data sets, synced to disk.

        Raises:
            OutputError: the store cannot be read or written.
        """
        atoms = self.atoms(run)
        if atoms.names != self._atoms.names:
            self._write(atoms)
            self._atoms = atoms

    def _hashes(self, ids: Iterable[str]) -> np.ndarray:
        joined = b"".join(
            hashlib.blake2b(name.encode(), digest_size=8, key=self._salt).digest() for name in ids
        )
        return np.frombuffer(joined, dtype="<u8").astype(np.uint64)

    def _load(self) -> None:
        """Read the store once; convert what versions before kept."""
        if self._salt:
            return
        if self.file.exists():
            self._salt, self._atoms = self._read()
        else:
            self._salt = secrets.token_bytes(32)
            self._convert()
        for name in self._atoms.names:  # converted; a crash may have left the files
            for old in ("ids", "division"):
                (self.folder / f"{name}.{old}").unlink(missing_ok=True)

    def _read(self) -> tuple[bytes, SampleAtoms]:
        try:
            with np.load(io.BytesIO(self.file.read_bytes()), allow_pickle=False) as held:
                atoms = SampleAtoms(
                    hashes=held["hashes"], atoms=held["atoms"], members=held["members"],
                    names=tuple(held["names"].tolist()),
                )  # fmt: skip
                return held["salt"].tobytes(), atoms
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            message = (
                f"{self.file}: expected the store of released data sets, it cannot be read "
                f"({type(error).__name__}); restore it from a backup. Without the file every "
                "sample counts as part of every release before"
            )
            raise OutputError(message) from error

    def _write(self, atoms: SampleAtoms) -> None:
        out = io.BytesIO()
        np.savez(
            out, salt=np.frombuffer(self._salt, dtype=np.uint8), hashes=atoms.hashes,
            atoms=atoms.atoms, members=atoms.members, names=np.array(atoms.names, dtype=np.str_),
        )  # fmt: skip
        write_private(self.file, out.getvalue())

    def _convert(self) -> None:
        """Convert a store of before: one file of ids for each data set, one for its division.

        A file that does not give its own name is left where it is: its data set is unknown, and
        what left of it counts for every sample.
        """
        found: dict[str, frozenset[str]] = {}
        for file in sorted(self.folder.glob("*.ids")):
            ids = _read_ids(file)
            if dataset_name(ids) == file.stem:
                found[file.stem] = ids
            else:
                logger.warning("%s: not as it was written; it counts for every sample", file)
        atoms = self._atoms
        for name, ids in found.items():
            atoms = atoms.with_dataset(name, self._hashes(ids))
            held = self._held_before(ids, found)
            if held:
                atoms = atoms.with_dataset(name + HELD, self._hashes(held))
        if found:
            self._write(atoms)
            self._atoms = atoms
            logger.info("%s: converted %d data sets of a store of before", self.file, len(found))

    def _held_before(self, ids: frozenset[str], found: dict[str, frozenset[str]]) -> frozenset[str]:
        """Return the own hold-out of a data set, by the division of the one most like it."""
        divided = [name for name in found if (self.folder / f"{name}.division").exists()]
        if not divided:
            return frozenset()
        nearest = min(divided, key=lambda name: len(found[name] ^ ids))
        words = (self.folder / f"{nearest}.division").read_text(encoding="ascii")
        if words == "none":
            return frozenset()
        share, seed = (part.split()[1] for part in words.split(", "))
        return frozenset(name for name in ids if holdout_share(int(seed), name) < float(share))


def dataset_name(ids: Iterable[str]) -> str:
    """Return the name of a data set: SHA-256 over its sorted ids."""
    return hashlib.sha256("\n".join(sorted(ids)).encode()).hexdigest()


def _read_ids(file: Path) -> frozenset[str]:
    try:
        return frozenset(file.read_text(encoding="ascii").split())
    except (OSError, UnicodeDecodeError):
        return frozenset()
