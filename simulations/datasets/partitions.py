"""One list of samples split into silos, for studies of federations that differ.

A split is a function of seed and ids alone: the order of the list changes nothing.
"""

from collections.abc import Mapping, Sequence

from fedwinnow.curation.datatypes import Sample
from fedwinnow.curation.errors import ConfigError, DataError
from fedwinnow.curation.seeds import derive_seed
from fedwinnow.simulations.datasets.planted_noise import plant


def iid(samples: Sequence[Sample], *, silos: int, seed: int) -> dict[str, list[Sample]]:
    """Deal the samples out by lot: silos of equal size, or one more, and alike.

    Args:
        samples: Samples with unique ids.
        silos: Number of silos, 1 to the number of samples.
        seed: Of the lot.

    Returns:
        ``silo-1`` … → its samples.

    Raises:
        ConfigError: there are fewer samples than silos.
    """
    if not 1 <= silos <= len(samples):
        message = f"silos = {silos} is out of range; allowed: 1 to the {len(samples)} samples"
        raise ConfigError(message)
    ordered = sorted(samples, key=lambda one: (derive_seed(seed, "iid", one.id), one.id))
    return {f"silo-{number + 1}": ordered[number::silos] for number in range(silos)}


def by_domain(samples: Sequence[Sample]) -> dict[str, list[Sample]]:
    """One silo for each domain, named after it; samples in the order of their ids.

    Raises:
        DataError: a sample has no domain.
    """
    silos: dict[str, list[Sample]] = {}
    for sample in sorted(samples, key=lambda one: one.id):
        if not sample.domain:
            message = (
                f"samples: {sample.id[:12]} has no domain to split by; map columns.domain, or "
                "split with iid"
            )
            raise DataError(message)
        silos.setdefault(sample.domain, []).append(sample)
    return dict(sorted(silos.items()))


def unequal_quality(
    silos: Mapping[str, Sequence[Sample]],
    *,
    shares: Mapping[str, float],
    kinds: Sequence[str],
    seed: int,
) -> dict[str, list[Sample]]:
    """Plant another share of noise in each silo.

    Args:
        silos: Name → clean samples.
        shares: Name → share to corrupt, in [0, 1]; every silo named once.
        kinds: Names of the planted kinds (see ``noise.KINDS``).
        seed: Of all silos; each derives its own.

    Returns:
        Name → samples, each with ``labels["corruption"]``.

    Raises:
        ConfigError: shares and silos are not named alike, or a share or kind is wrong.
        DataError: a kind cannot be made from a silo's samples.
    """
    if set(shares) != set(silos):
        message = (
            f"shares: expected one for each of the silos {', '.join(sorted(silos))}, got "
            f"{', '.join(sorted(shares)) or 'none'}; name every silo once"
        )
        raise ConfigError(message)
    return {
        name: plant(
            samples,
            share=shares[name],
            kinds=kinds,
            seed=derive_seed(seed, "silo", name),
            foreign=[one for other in silos if other != name for one in silos[other]],
        )
        for name, samples in silos.items()
    }
