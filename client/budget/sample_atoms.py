"""Group samples into atoms: samples that every released data set holds or lacks together.

Figures of several data sets can be added and subtracted. The indicator of a data set D is constant
on each atom, so every combination Σ_D c_D · 1[x ∈ D] is constant on atoms as well: it counts all
samples of an atom, or none. If no atom has fewer than m samples, then no sum or difference of any
number of released figures is of fewer than m. A new data set is therefore admitted only if it
parts no atom into a piece of fewer than m samples, and brings no fewer than m that are new.

This audits queries, as Chin and Ozsoyoglu do: a data set is released only if all that follows from
it and from what was released before stays of many.

Reference:
    F. Y. Chin and G. Ozsoyoglu, Auditing and Inference Control in Statistical Databases, IEEE
    Transactions on Software Engineering 8(6), 1982.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int, UInt64


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleAtoms:
    """Hashed samples, the atom of each, and the data sets that hold each atom."""

    hashes: UInt64[np.ndarray, " samples"]
    """Hash of each sample that any data set held, sorted."""
    atoms: Int[np.ndarray, " samples"]
    """Atom of each sample, from 0."""
    names: tuple[str, ...]
    """Name of each data set."""
    members: Bool[np.ndarray, "atoms names"]
    """Whether a data set holds an atom."""

    @classmethod
    def empty(cls) -> "SampleAtoms":
        """Return the atoms of no data set."""
        return cls(
            hashes=np.zeros(0, dtype=np.uint64),
            atoms=np.zeros(0, dtype=np.int32),
            names=(),
            members=np.zeros((0, 0), dtype=bool),
        )

    @property
    def sizes(self) -> Int[np.ndarray, " atoms"]:
        """Return the number of samples of each atom."""
        return np.bincount(self.atoms, minlength=len(self.members))

    def held(self, name: str) -> Bool[np.ndarray, " atoms"]:
        """Return whether a data set holds each atom.

        Raises:
            KeyError: the data set is unknown.
        """
        if name not in self.names:
            raise KeyError(name)
        return self.members[:, self.names.index(name)]

    def with_dataset(self, name: str, samples: UInt64[np.ndarray, " members"]) -> "SampleAtoms":
        """Return the atoms refined by one more data set, which is a union of them from then on."""
        samples = np.unique(samples)
        inside = np.isin(self.hashes, samples, assume_unique=True)
        new = np.setdiff1d(samples, self.hashes, assume_unique=True)
        parts, atoms = np.unique(self.atoms.astype(np.int64) * 2 + inside, return_inverse=True)
        members = np.column_stack([self.members[parts // 2], parts % 2 == 1])
        if len(new):
            row = np.zeros((1, members.shape[1]), dtype=bool)
            row[0, -1] = True
            members = np.concatenate([members, row])
        hashes = np.concatenate([self.hashes, new])
        atoms = np.concatenate([atoms, np.full(len(new), len(parts))])
        order = np.argsort(hashes)
        return SampleAtoms(
            hashes=hashes[order],
            atoms=atoms[order].astype(np.int32),
            names=(*self.names, name),
            members=members,
        )

    def smallest_part(self, name: str, released: Collection[str]) -> int | None:
        """Return the fewest samples that releasing a data set would set apart from all others.

        Args:
            name: The data set that would be released, known already.
            released: Data sets of which figures left before.

        Returns:
            None where it sets nothing apart: it is a union of atoms of the released data sets.
        """
        mine, sizes = self.held(name), self.sizes
        columns = [i for i, known in enumerate(self.names) if known in released]
        seen = self.members[:, columns]
        groups, group = np.unique(seen, axis=0, return_inverse=True)
        group = group.reshape(-1)
        inside = np.bincount(group, weights=sizes * mine, minlength=len(groups)).astype(np.int64)
        whole = np.bincount(group, weights=sizes, minlength=len(groups)).astype(np.int64)
        old = groups.any(axis=1)
        parted = old & (inside > 0) & (inside < whole)
        parts = [*inside[parted], *(whole - inside)[parted], *inside[~old & (inside > 0)]]
        return int(min(parts)) if parts else None

    def spent(self, releases: Mapping[str, int]) -> Int[np.ndarray, " atoms"]:
        """Return the number of releases that the samples of each atom took part in.

        Args:
            releases: Data set → its releases; a data set that is unknown counts for every sample.
        """
        total = np.zeros(len(self.members), dtype=np.int64)
        for name, number in releases.items():
            total += number * (self.held(name) if name in self.names else 1)
        return total
