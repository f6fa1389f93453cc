"""Laws of merging rules, tried on three adapters of one rank with scales of their own.

Rules that rely on one factor that no site trains (``FactorMerging``) get sites that left A as it
was sent. What a rule moves into the base counts as part of its result.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from fedwinnow.curation.adapters import algebra as maths
from fedwinnow.curation.adapters import checks
from fedwinnow.curation.adapters.checks import adapter_hash
from fedwinnow.curation.datatypes import Adapter
from fedwinnow.curation.errors import IncompatibleAdapterError, NonFiniteError, RunError
from fedwinnow.strategies.conformance.law import Law, Make, raises
from fedwinnow.strategies.interfaces.merging import FactorMerging, Merged

SHAPES: Mapping[str, tuple[int, int]] = {
    "model.layers.0.q_proj": (9, 7),
    "model.layers.1.v_proj": (6, 8),
}
"""Module → outputs, inputs."""
WEIGHTS = {"a": 0.5, "b": 0.3, "c": 0.2}
RANK, SCALE = 3, 2.0
TOLERANCE = 1e-5
"""Relative; factors are float32."""


def adapter(seed: int, *, scale: float = SCALE, base: str = "base", zero: bool = False) -> Adapter:
    """Return an adapter of seeded factors; ``zero``: B = 0, so that it changes nothing."""
    draw = torch.Generator().manual_seed(seed)
    a = {name: torch.randn(RANK, n, generator=draw) for name, (_, n) in SHAPES.items()}
    b = {name: torch.randn(k, RANK, generator=draw) for name, (k, _) in SHAPES.items()}
    if zero:
        b = {name: torch.zeros_like(factor) for name, factor in b.items()}
    return Adapter(base=base, a=a, b=b, scales=dict.fromkeys(SHAPES, scale))


def trained(rule: object, seed: int, **changes: Any) -> Adapter:  # noqa: ANN401 - see adapter
    """Return a site's adapter as this rule has sites train it, from :func:`before`."""
    found = adapter(seed, **changes)
    return replace(found, a=before().a) if isinstance(rule, FactorMerging) else found


def three(rule: object) -> dict[str, Adapter]:
    """Return three sites' adapters."""
    second = trained(rule, 2, scale=1.0)
    return {"a": trained(rule, 1), "b": second, "c": trained(rule, 3)}


def before() -> Adapter:
    """Return the adapter that the sites started from."""
    return adapter(0, zero=True)


def _merge(make: Make, adapters: Mapping[str, Adapter], weights: Mapping[str, float]) -> Merged:
    found: Merged = make()(adapters, weights, before())
    return found


def _apart(found: Merged, other: Adapter) -> float:
    """Return ‖ΔW_1 − ΔW_2‖ / ‖ΔW_2‖ over all modules, ΔW_1 with what went into the base."""
    apart = whole = 0.0
    moved = found.change
    for name in other.modules:
        wanted = maths.delta(other, name)
        parts = [maths.delta(found.adapter, name, -1.0), wanted]
        if moved is not None and name in moved.a:
            parts.append(maths.delta(moved, name, -1.0))
        apart += maths.norm(maths.sum_products(parts)) ** 2
        whole += maths.norm(wanted) ** 2
    return float((apart / whole) ** 0.5)


def _deterministic(make: Make) -> str:
    sites = three(make())
    first = _merge(make, sites, WEIGHTS).adapter
    second = _merge(make, dict(reversed(sites.items())), WEIGHTS).adapter
    same = adapter_hash(first) == adapter_hash(second)
    return "" if same else "another order of arrival gives other bits"


def _whole(make: Make) -> str:
    found = _merge(make, three(make()), WEIGHTS)
    checks.check_compatible({"merged": found.adapter}, before())
    odd = [name for name, value in found.report.items() if not abs(value) < float("inf")]
    return f"{odd[0]} of the report is {found.report[odd[0]]}" if odd else ""


def _itself(make: Make) -> str:
    one = trained(make(), 1)
    apart = _apart(_merge(make, {"a": one}, {"a": 1.0}), one)
    return "" if apart <= TOLERANCE else f"its product moves by {apart:.3g} of its norm"


def _same(make: Make) -> str:
    one = trained(make(), 1)
    apart = _apart(_merge(make, dict.fromkeys("abc", one), WEIGHTS), one)
    return "" if apart <= TOLERANCE else f"the product moves by {apart:.3g} of its norm"


def _trainable(make: Make) -> str:
    still = {site: before() for site in "abc"}
    found = _merge(make, still, WEIGHTS).adapter
    dead = [name for name in found.modules if not bool((found.a[name] != 0).any())]
    return f"A of {dead[0]} is 0 after a zero update, so no gradient reaches B" if dead else ""


def _weightless(make: Make) -> str:
    sites = three(make())
    with_it = _merge(make, sites, {"a": 0.6, "b": 0.4, "c": 0.0}).adapter
    without = _merge(make, {s: sites[s] for s in "ab"}, {"a": 0.6, "b": 0.4}).adapter
    same = adapter_hash(with_it) == adapter_hash(without)
    return "" if same else "a site with weight 0 changes the merge"


def _finite(make: Make) -> str:
    spoilt = three(make())
    spoilt["b"].b["model.layers.0.q_proj"][0, 0] = torch.nan
    return raises(lambda: _merge(make, spoilt, WEIGHTS), NonFiniteError)


def _base(make: Make) -> str:
    strange = three(make()) | {"b": trained(make(), 2, base="another")}
    return raises(lambda: _merge(make, strange, WEIGHTS), IncompatibleAdapterError)


def _nobody(make: Make) -> str:
    return raises(lambda: _merge(make, three(make()), dict.fromkeys("abc", 0.0)), RunError)


def _untouched(make: Make) -> str:
    sites, start = three(make()), before()
    hashes = [adapter_hash(one) for one in (*sites.values(), start)]
    make()(sites, WEIGHTS, start)
    same = hashes == [adapter_hash(one) for one in (*sites.values(), start)]
    return "" if same else "a factor was changed in place"


LAWS = (
    Law(says="the order of arrival changes nothing, bit for bit", check=_deterministic),
    Law(says="what it gives is finite and fits the modules of the previous adapter", check=_whole),
    Law(says="a NaN in a factor is NonFiniteError", check=_finite),
    Law(says="an adapter of another base is IncompatibleAdapterError", check=_base),
    Law(says="weights of 0 alone are an error by name", check=_nobody),
    Law(says="it changes nothing that it is given", check=_untouched),
    Law(says="zero updates leave an adapter that can be trained", check=_trainable),
    Law(says="a site with weight 0 does not count", check=_weightless, required=False),
    Law(says="one adapter merges to itself", check=_itself, required=False),
    Law(says="copies of one adapter merge to it", check=_same, required=False),
)
