"""Laws of merging rules for sparse differences, tried on three sites whose supports overlap."""

import torch

from fedwinnow.curation.datatypes import SparseAdapter
from fedwinnow.curation.errors import IncompatibleAdapterError, NonFiniteError, RunError
from fedwinnow.strategies.conformance.law import Law, Make, raises
from fedwinnow.strategies.interfaces.merging import SparseMerged

NAME, SHAPE = "model.layers.0.q_proj.weight", (20, 30)
PLACES = {"a": (1, 5, 9), "b": (5, 9, 40), "c": (9, 77)}
"""Site → entries that it changes; fewer than 1 % of them."""
WEIGHTS = {"a": 0.5, "b": 0.3, "c": 0.2}
TOLERANCE = 1e-6


def difference(site: str, *, base: str = "base") -> SparseAdapter:
    """Return a site's difference; that of "" changes nothing."""
    places = PLACES.get(site, ())
    return SparseAdapter(
        base=base,
        indices={NAME: torch.tensor(places, dtype=torch.int64)},
        values={NAME: torch.tensor([0.1 * (place + 1) for place in places])},
        shapes={NAME: SHAPE},
    )


def three() -> dict[str, SparseAdapter]:
    """Return three sites' differences."""
    return {site: difference(site) for site in PLACES}


def _merge(make: Make, sites: dict[str, SparseAdapter], weights: dict[str, float]) -> SparseMerged:
    found: SparseMerged = make()(sites, weights, difference(""))
    return found


def _same(one: SparseAdapter, other: SparseAdapter, *, tolerance: float = 0.0) -> bool:
    return torch.equal(one.indices[NAME], other.indices[NAME]) and torch.allclose(
        one.values[NAME], other.values[NAME], rtol=tolerance, atol=0.0
    )


def _deterministic(make: Make) -> str:
    first = _merge(make, three(), WEIGHTS).adapter
    second = _merge(make, dict(reversed(three().items())), WEIGHTS).adapter
    return "" if _same(first, second) else "another order of arrival gives other bits"


def _itself(make: Make) -> str:
    found = _merge(make, {"a": difference("a")}, {"a": 1.0}).adapter
    return "" if _same(found, difference("a"), tolerance=TOLERANCE) else "its entries change"


def _finite(make: Make) -> str:
    spoilt = three()
    spoilt["b"].values[NAME][0] = torch.nan
    return raises(lambda: _merge(make, spoilt, WEIGHTS), NonFiniteError)


def _base(make: Make) -> str:
    strange = three() | {"b": difference("b", base="another")}
    return raises(lambda: _merge(make, strange, WEIGHTS), IncompatibleAdapterError)


def _nobody(make: Make) -> str:
    return raises(lambda: _merge(make, three(), dict.fromkeys(PLACES, 0.0)), RunError)


def _untouched(make: Make) -> str:
    sites = three()
    _merge(make, sites, WEIGHTS)
    same = all(_same(sites[site], difference(site)) for site in sites)
    return "" if same else "a difference was changed in place"


LAWS = (
    Law(says="the order of arrival changes nothing, bit for bit", check=_deterministic),
    Law(says="a NaN in a value is NonFiniteError", check=_finite),
    Law(says="a difference of another base is IncompatibleAdapterError", check=_base),
    Law(says="weights of 0 alone are an error by name", check=_nobody),
    Law(says="it changes nothing that it is given", check=_untouched),
    Law(says="one difference merges to itself", check=_itself, required=False),
)
