"""Derive features of a sample, one number each, from its rows of signals.

At the untrained adapter (checkpoint 0), ℓ(a | q) the mean token loss of body a after prompt q::

    loss, loss_sd, loss_q90     as measured, nats
    length                      log of the number of body tokens
    end_loss                    nats; NaN where the end token was cut away
    has_end                     1 or 0
    ira                         ℓ(a) − ℓ(a | q)                    what the prompt explains, nats
    ifd                         log ℓ(a) − log ℓ(a | q)
    contrast_mean, contrast_min mean and least of ℓ(a | q′) − ℓ(a | q) over other public prompts q′
    own                         representation's cosine with the reference of the own domain
    foreign                     the same minus the largest with another domain's, if there is one

At later checkpoints t (the mean over them)::

    drop                        (ℓ_0 − ℓ_t) / ℓ_0                  what warm-up taught
    cosine, adam_cosine         ⟨g, G⟩ / ‖g‖‖G‖ and ⟨Γ(g), G⟩ / ‖Γ(g)‖‖G‖, G of the own domain
    norm, adam_norm             log ‖g‖ and log ‖Γ(g)‖

Every loss runs over the same body tokens.

Reference:
    ira: FedDQC, Du et al., 2024, https://arxiv.org/abs/2410.11540. ifd: Li et al., NAACL 2024,
    https://arxiv.org/abs/2308.12032. adam_cosine: LESS, Xia et al., ICML 2024,
    https://arxiv.org/abs/2402.04333.
"""

from collections.abc import Collection
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool, Float, Int

from fedwinnow.curation.datatypes import SignalTable, Status, Trajectory

_TINY = 1e-12


@dataclass(frozen=True, slots=True, kw_only=True)
class Features:
    """Features of samples, by name; all are finite but ``end_loss``, which may be NaN."""

    names: tuple[str, ...]
    values: Float[np.ndarray, "samples features"]
    """float64."""

    def select(self, names: Collection[str]) -> "Features":
        """Return the features with one of the names, in their own order."""
        keep = [i for i, name in enumerate(self.names) if name in names]
        return Features(names=tuple(self.names[i] for i in keep), values=self.values[:, keep])


def has_signals(trajectory: Trajectory) -> Bool[np.ndarray, " samples"]:
    """Return a mask of the samples that have signals at every checkpoint."""
    return np.asarray(np.logical_and.reduce([t.status == Status.OK for t in trajectory]))


def take_samples(trajectory: Trajectory, rows: Int[np.ndarray, " rows"]) -> Trajectory:
    """Return the trajectory of some of the samples."""
    return tuple(
        replace(
            table,
            ids=tuple(table.ids[i] for i in rows),
            domains=tuple(table.domains[i] for i in rows),
            status=table.status[rows],
            columns={name: values[rows] for name, values in table.columns.items()},
        )
        for table in trajectory
    )


def nearest_domains(table: SignalTable, known: Collection[str]) -> tuple[str, ...]:
    """Return each sample's domain; an unknown one becomes that of the nearest reference anchors.

    Where representations are not measured, an unknown domain becomes ``""``: the pool of all.
    """
    choices = [k for k, name in enumerate(table.references) if name in known]
    if "representation" not in table.columns or not choices:
        return tuple(name if name in known else "" for name in table.domains)
    near = np.argmax(table.columns["representation"][:, choices], axis=1)
    return tuple(
        name if name in known else table.references[choices[k]]
        for name, k in zip(table.domains, near, strict=True)
    )


def derive_features(trajectory: Trajectory, domains: tuple[str, ...]) -> Features:
    """Derive every feature whose columns were measured; rows must have signals.

    Args:
        trajectory: Tables of the same samples, checkpoint 0 first.
        domains: Each sample's domain, whose reference is its own; a sample of a domain without a
            reference takes the largest cosine over all references.
    """
    first, later = trajectory[0], trajectory[1:]
    found = _forward(first)
    own = _own(first, domains)
    if "representation" in first.columns:
        found |= _representation(first, own)
    if later and "loss" in first.columns:
        drops = [_relative_drop(first, table) for table in later if "loss" in table.columns]
        found |= {"drop": np.mean(drops, axis=0)} if drops else {}
    gradients = [_gradient(table, _own(table, domains)) for table in later]
    for name in gradients[0] if gradients else ():
        found[name] = np.mean([one[name] for one in gradients], axis=0)
    return Features(names=tuple(found), values=np.stack(list(found.values()), axis=1))


def _column(table: SignalTable, name: str) -> Float[np.ndarray, "samples ..."]:
    return table.columns[name].astype(np.float64)


def _forward(table: SignalTable) -> dict[str, Float[np.ndarray, " samples"]]:
    have = table.columns
    found = {name: _column(table, name) for name in ("loss", "loss_sd", "loss_q90") if name in have}
    if "length" in have:
        found["length"] = np.log(np.maximum(_column(table, "length"), 1.0))
    if "has_end" in have:
        found["has_end"] = _column(table, "has_end")
    if "end_loss" in have:
        ends = found["has_end"] > 0 if "has_end" in found else np.ones(len(table.ids), dtype=bool)
        found["end_loss"] = np.where(ends, _column(table, "end_loss"), np.nan)
    if "loss" not in have:
        return found
    loss = found["loss"]
    if "unconditional_loss" in have:
        alone = _column(table, "unconditional_loss")
        found["ira"] = alone - loss
        found["ifd"] = np.log(np.maximum(alone, _TINY)) - np.log(np.maximum(loss, _TINY))
    for name in ("mean", "min"):
        if f"contrast_loss_{name}" in have:
            found[f"contrast_{name}"] = _column(table, f"contrast_loss_{name}") - loss
    return found


def _own(table: SignalTable, domains: tuple[str, ...]) -> Int[np.ndarray, " samples"]:
    """Return the index of each sample's own reference; −1 where its domain has no reference."""
    places = {name: k for k, name in enumerate(table.references)}
    return np.array([places.get(name, -1) for name in domains], dtype=np.int64)


def _pick(
    values: Float[np.ndarray, "samples references"], own: Int[np.ndarray, " samples"]
) -> Float[np.ndarray, " samples"]:
    chosen = values[np.arange(len(own)), np.maximum(own, 0)]
    return np.asarray(np.where(own >= 0, chosen, values.max(axis=1)))


def _representation(
    table: SignalTable, own: Int[np.ndarray, " samples"]
) -> dict[str, Float[np.ndarray, " samples"]]:
    values = _column(table, "representation")
    mine = _pick(values, own)
    if values.shape[1] == 1:
        return {"own": mine}
    others = values.copy()
    home = np.where(own >= 0, own, values.argmax(axis=1))
    others[np.arange(len(own)), home] = -np.inf
    return {"own": mine, "foreign": mine - others.max(axis=1)}


def _relative_drop(first: SignalTable, table: SignalTable) -> Float[np.ndarray, " samples"]:
    before = _column(first, "loss")
    return np.asarray((before - _column(table, "loss")) / np.maximum(before, _TINY))


def _gradient(
    table: SignalTable, own: Int[np.ndarray, " samples"]
) -> dict[str, Float[np.ndarray, " samples"]]:
    lengths = np.sqrt(np.maximum(np.diag(table.reference_gram), _TINY))
    found = {}
    for dot, norm, name in (("dot", "norm", "cosine"), ("adam_dot", "adam_norm", "adam_cosine")):
        if dot in table.columns and norm in table.columns:
            size = np.maximum(_column(table, norm), _TINY)
            found[name] = _pick(_column(table, dot) / lengths, own) / size
            found[norm] = np.log(size)
    return found
