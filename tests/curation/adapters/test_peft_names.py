import numpy as np
import pytest
import torch

from fedwinnow.curation.adapters.peft_names import (
    adapter_from_arrays,
    adapter_to_arrays,
    state_dict_of,
)
from fedwinnow.curation.datatypes import Adapter
from fedwinnow.curation.errors import IncompatibleAdapterError


def arrays(tail=".weight", dtype=np.float32):
    """Two modules under PEFT's names, B before A."""
    rng = np.random.default_rng(0)
    names = ("q_proj.lora_B", "q_proj.lora_A", "v_proj.lora_B", "v_proj.lora_A")
    shapes = ((4, 2), (2, 3), (5, 2), (2, 3))
    return {
        f"base_model.model.{name}{tail}": rng.normal(size=shape).astype(dtype)
        for name, shape in zip(names, shapes, strict=True)
    }


@pytest.mark.parametrize("tail", [".weight", ".default.weight"])
@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.float64])
def test_factors_there_and_back_are_the_same(tail, dtype):
    """Names, order, number format and every bit survive the way through an Adapter."""
    given = arrays(tail, dtype)
    back = adapter_to_arrays(adapter_from_arrays(given, scale=2.0), like=given, scale=2.0)
    assert list(back) == list(given)
    for name, array in given.items():
        assert back[name].dtype == dtype
        np.testing.assert_array_equal(back[name], array)


def test_factors_keep_the_update_when_a_merge_changes_the_scale():
    """The update s · B A of the arrays under the given scale equals s' · B' A' of the adapter."""
    given = arrays()
    adapter = adapter_from_arrays(given, scale=2.0)
    other = Adapter(base="", a=adapter.a, b=adapter.b, scales=dict.fromkeys(adapter.a, 0.5))
    back = adapter_from_arrays(adapter_to_arrays(other, like=given, scale=2.0), scale=2.0)
    for module in adapter.modules:
        torch.testing.assert_close(
            2.0 * back.b[module] @ back.a[module], 0.5 * other.b[module] @ other.a[module]
        )


def test_factors_refuse_an_array_that_is_no_factor():
    """A foreign name is an error that names it."""
    with pytest.raises(IncompatibleAdapterError, match=r"classifier\.weight"):
        adapter_from_arrays({"classifier.weight": np.zeros((2, 2))}, scale=1.0)


def test_state_dict_names_factors_as_peft_does():
    """Module name, lora_A or lora_B, weight; sorted by module."""
    names = list(state_dict_of(adapter_from_arrays(arrays(), scale=1.0)))
    assert names == [
        "base_model.model.q_proj.lora_A.weight",
        "base_model.model.q_proj.lora_B.weight",
        "base_model.model.v_proj.lora_A.weight",
        "base_model.model.v_proj.lora_B.weight",
    ]
