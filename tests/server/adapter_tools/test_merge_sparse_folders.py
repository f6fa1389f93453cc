"""Laws of ``merge --rule sparse_sum``: PEFT's SHiRA adapters in, one that PEFT loads out."""

import json
from pathlib import Path

import pytest
import torch
from peft import PeftModel, ShiraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from fedwinnow.curation.adapters.shira_folder import open_entries, shapes_of
from fedwinnow.curation.errors import CurationError, ModelError
from fedwinnow.server.adapter_tools.merge_folders import merge_folders

DENSE = {"density": 1.0}


def base_of(folder: Path):
    """The tiny model anew."""
    return AutoModelForCausalLM.from_pretrained(folder)


def save(model_folder: Path, folder: Path, seed: int, *, r: int = 1, targets=("q_proj", "v_proj")):
    """A sparse adapter that PEFT itself makes, its values at random, and saves."""
    config = ShiraConfig(r=r, random_seed=seed, target_modules=list(targets), task_type="CAUSAL_LM")
    net = get_peft_model(base_of(model_folder), config)
    torch.manual_seed(seed)
    for name, parameter in net.named_parameters():
        if "shira_weight" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    net.save_pretrained(folder)
    return folder


def effect(model_folder: Path, folder: Path) -> dict[str, torch.Tensor]:
    """What a folder adds to each weight of the base, by PEFT."""
    bare = base_of(model_folder).state_dict()
    with torch.sparse.check_sparse_tensor_invariants(enable=True):
        merged = PeftModel.from_pretrained(base_of(model_folder), folder).merge_and_unload()
    return {key: v.detach().double() - bare[key].double() for key, v in merged.state_dict().items()}


@pytest.fixture(scope="module")
def silos(tiny_model_folder, tmp_path_factory) -> list[Path]:
    """Three sparse adapters: other supports, another r, other targets."""
    place = tmp_path_factory.mktemp("sparse")
    return [
        save(tiny_model_folder, place / "one", 1),
        save(tiny_model_folder, place / "two", 2, r=2),
        save(tiny_model_folder, place / "three", 3, targets=("v_proj", "down_proj")),
    ]


def test_sum_of_folders_is_the_weighted_sum_in_peft(tiny_model_folder, silos, tmp_path):
    """Effective weights, by PEFT: merged = Σ p_i · folder's, on the union of supports."""
    weights = (0.5, 0.3, 0.2)
    told = merge_folders(
        silos,
        tmp_path / "out",
        rule="sparse_sum",
        settings=DENSE,
        weights=weights,
        base=str(tiny_model_folder),
    )
    effects = [effect(tiny_model_folder, folder) for folder in silos]
    merged = effect(tiny_model_folder, tmp_path / "out")
    for key, got in merged.items():
        wanted = sum(w * one[key] for w, one in zip(weights, effects, strict=True))
        torch.testing.assert_close(got, wanted, rtol=0, atol=1e-6)  # rounding of fp32 weights
    assert told.error is not None
    assert told.error < 1e-6
    assert told.norm == pytest.approx(told.target_norm, rel=1e-6)
    assert told.ranks == (4, 4)  # v_proj: entries of r = 1, 2 and 1, hardly any of them shared
    assert [part.ranks for part in told.parts] == [(1, 1), (2, 2), (1, 1)]


def test_one_folder_comes_back_entry_by_entry(silos, tmp_path):
    """The sum of one folder has its entries, its r and its target list."""
    merge_folders(silos[:1], tmp_path / "out", rule="sparse_sum", settings=DENSE)
    was, now = (open_entries(folder) for folder in (silos[0], tmp_path / "out"))
    assert now.config["r"] == was.config["r"] == 1
    assert now.config["target_modules"] == ["q_proj", "v_proj"]
    for module, places in was.places.items():
        old = {
            tuple(p): v for p, v in zip(places.T.tolist(), was.values[module].tolist(), strict=True)
        }
        new = {
            tuple(p): v
            for p, v in zip(now.places[module].T.tolist(), now.values[module].tolist(), strict=True)
        }
        assert new == old


def test_shapes_need_the_base_where_no_entry_reaches_the_edge(tiny_model_folder, silos, tmp_path):
    """Without entries in the last row the folder does not say m and n, the base's files do."""
    folder = tmp_path / "short"
    folder.mkdir()
    arrays = load_file(silos[0] / "adapter_model.safetensors")
    for key, value in arrays.items():
        if key.endswith("indices"):
            arrays[key] = torch.stack([value[0].clamp(max=int(value[0].max()) - 1), value[1]])
    save_file(arrays, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text((silos[0] / "adapter_config.json").read_text())
    entries = open_entries(folder)
    with pytest.raises(ModelError, match=r"m \+ n = .* give --base the folder"):
        shapes_of([entries])
    state = base_of(tiny_model_folder).state_dict()
    for module, shape in shapes_of([entries], tiny_model_folder).items():
        assert shape == tuple(state[f"{module}.weight"].shape)


def test_sum_refuses_by_name(tiny_model_folder, silos, tmp_path):
    """LoRA folders, twice the same entry, too many entries, other settings: named; nothing left."""
    out = tmp_path / "out"
    with pytest.raises(CurationError, match=r"expected at most 0\.001 of"):
        merge_folders(silos[:1], out, rule="sparse_sum", settings={"density": 0.001})
    with pytest.raises(ModelError, match=r"expected peft_type = 'LORA'.*SHIRA"):
        merge_folders(silos[:1], out, rule="core_svd")
    config = json.loads((silos[0] / "adapter_config.json").read_text())
    arrays = load_file(silos[0] / "adapter_model.safetensors")
    key = next(key for key in arrays if key.endswith("indices"))
    doubled = {**arrays, key: arrays[key].clone()}
    doubled[key][:, 0] = doubled[key][:, 1]
    odd = {key: value for key, value in arrays.items() if not key.endswith("indices")}
    nan = {k: v * float("nan") if k.endswith("weight") else v for k, v in arrays.items()}
    cases = {
        "given twice": (config, doubled),
        "fan_in_fan_out": ({**config, "fan_in_fan_out": True}, arrays),
        "modules_to_save": ({**config, "modules_to_save": ["lm_head"]}, arrays),
        "pairs of indices": (config, odd),
        "finite values": (config, nan),
        "no part of a sparse": (
            config,
            {**arrays, "base_model.model.x.lora_A.weight": torch.ones(1)},
        ),
        "r \\(m \\+ n\\)": ({**config, "r": 7}, arrays),
        "above 0, got 0": ({**config, "r": 0}, arrays),
    }
    for number, (words, (settings, tensors)) in enumerate(cases.items()):
        folder = tmp_path / f"case-{number}"
        folder.mkdir()
        save_file(tensors, folder / "adapter_model.safetensors")
        (folder / "adapter_config.json").write_text(json.dumps(settings))
        with pytest.raises(CurationError, match=words):
            merge_folders(
                [folder], out, rule="sparse_sum", settings=DENSE, base=str(tiny_model_folder)
            )
    assert not out.exists()


def test_full_weights_cannot_be_padded(tiny_model_folder, tmp_path):
    """A union that no r(m + n) <= mn holds is refused by name."""
    model = base_of(tiny_model_folder)
    outputs, inputs = model.model.layers[0].self_attn.v_proj.weight.shape
    most = outputs * inputs // (outputs + inputs)
    folders = [
        save(tiny_model_folder, tmp_path / str(seed), seed, r=most, targets=("v_proj",))
        for seed in range(4)
    ]
    with pytest.raises(CurationError, match=r"v_proj.*needs r = .* merge fewer or sparser"):
        merge_folders(folders, tmp_path / "out", rule="sparse_sum", settings=DENSE)
    assert not (tmp_path / "out").exists()
