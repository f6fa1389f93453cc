"""Convert LoRA factors under PEFT's names to an :class:`Adapter`, and back.

PEFT's state dict names them ``MODULE.lora_A.weight`` and ``MODULE.lora_B.weight``, or with the
adapter's name before ``weight``; it does not hold the scale s of ΔW = s · B A, which the caller
gives. A merge that changes the scale is written back under it: s' · B' A' = s · (s'/s · B') A'.
"""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from fedwinnow.curation.datatypes import Adapter
from fedwinnow.curation.errors import IncompatibleAdapterError

Arrays = Mapping[str, np.ndarray[Any, np.dtype[Any]]]
_FACTOR = re.compile(r"^(?P<module>.+)\.lora_(?P<factor>[AB])(\.[^.]+)?\.weight$")


def adapter_from_arrays(arrays: Arrays, *, scale: float) -> Adapter:
    """Return the adapter that named arrays hold.

    Raises:
        IncompatibleAdapterError: a name is not one of a LoRA factor.
    """
    factors: dict[str, dict[str, torch.Tensor]] = {"A": {}, "B": {}}
    for name, array in arrays.items():
        module, factor = _parts(name)
        factors[factor][module] = torch.from_numpy(np.array(array))
    scales = dict.fromkeys(factors["A"], scale)
    return Adapter(base="", a=factors["A"], b=factors["B"], scales=scales)


def adapter_to_arrays(
    adapter: Adapter, *, like: Arrays, scale: float
) -> dict[str, np.ndarray[Any, np.dtype[Any]]]:
    """Return the adapter as named arrays: names, order and dtypes of ``like``; ranks may differ."""
    arrays = {}
    for name, array in like.items():
        module, factor = _parts(name)
        if factor == "A":
            tensor = adapter.a[module]
        elif adapter.scales[module] == scale:
            tensor = adapter.b[module]
        else:
            tensor = adapter.b[module] * (adapter.scales[module] / scale)
        arrays[name] = tensor.numpy().astype(array.dtype)
    return arrays


def state_dict_of(adapter: Adapter) -> dict[str, np.ndarray[Any, np.dtype[Any]]]:
    """Return the adapter as float32 arrays under PEFT's names, modules in sorted order."""
    arrays = {}
    for module in adapter.modules:
        arrays[f"{module}.lora_A.weight"] = adapter.a[module].float().numpy()
        arrays[f"{module}.lora_B.weight"] = adapter.b[module].float().numpy()
    return arrays


def _parts(name: str) -> tuple[str, str]:
    match = _FACTOR.match(name)
    if match is None:
        message = (
            f"array {name!r}: expected a LoRA factor like MODULE.lora_A.weight; "
            "send get_peft_model_state_dict(model) and nothing else"
        )
        raise IncompatibleAdapterError(message)
    return match["module"], match["factor"]
