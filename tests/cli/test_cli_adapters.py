"""Laws of ``merge`` and ``diff``: PEFT's adapters in, an adapter that PEFT loads out."""

import json
import re
import shutil
from collections import Counter
from pathlib import Path

import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from fedwinnow.cli.main import app
from fedwinnow.curation.adapters import peft_folder as adapter_folders
from fedwinnow.curation.adapters.comparison import Comparison, Difference, module_place
from fedwinnow.curation.adapters.peft_folder import load_adapter
from fedwinnow.curation.adapters.peft_reader import open_adapter
from fedwinnow.curation.errors import ConfigError, CurationError, InputError, ModelError
from fedwinnow.server.adapter_tools.folder_checks import folder_shares
from fedwinnow.server.adapter_tools.heat_maps import axes_of, heat_map_figure, heat_maps
from fedwinnow.server.adapter_tools.merge_folders import merge_folders

KINDS = {
    "plain": {"r": 4, "lora_alpha": 6, "target_modules": ["q_proj", "v_proj"]},
    "rslora": {"r": 3, "lora_alpha": 5, "use_rslora": True, "target_modules": ["q_proj", "v_proj"]},
    "patterns": {
        "r": 2,
        "lora_alpha": 8,
        "target_modules": ["q_proj", "v_proj"],
        "rank_pattern": {"layers.1.self_attn.q_proj": 5},
        "alpha_pattern": {"v_proj": 3},
    },
    "other targets": {"r": 2, "lora_alpha": 2, "target_modules": ["v_proj", "down_proj"]},
}
WEIGHTS = (0.5, 0.2, 0.2, 0.1)


def base_of(folder: Path):
    """The tiny model anew."""
    return AutoModelForCausalLM.from_pretrained(folder)


def save(model_folder: Path, folder: Path, seed: int, **settings) -> Path:
    """An adapter that PEFT itself makes, at random, and saves."""
    torch.manual_seed(seed)
    config = LoraConfig(init_lora_weights=False, task_type="CAUSAL_LM", **settings)
    net = get_peft_model(base_of(model_folder), config)
    for name, parameter in net.named_parameters():
        if "modules_to_save" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    net.save_pretrained(folder)
    return folder


def weights_of(model_folder: Path, folder: Path) -> dict[str, torch.Tensor]:
    """The base's own weights after PEFT has loaded an adapter and merged it into them."""
    merged = PeftModel.from_pretrained(base_of(model_folder), folder).merge_and_unload()
    return {name: value.detach().double() for name, value in merged.state_dict().items()}


@pytest.fixture(scope="module")
def silos(tiny_model_folder, tmp_path_factory) -> dict[str, Path]:
    """Four adapters that differ in rank, scale rule, patterns and targets."""
    place = tmp_path_factory.mktemp("silos")
    return {
        name: save(tiny_model_folder, place / name.replace(" ", "-"), seed, **settings)
        for seed, (name, settings) in enumerate(KINDS.items())
    }


@pytest.fixture(scope="module")
def bare(tiny_model_folder) -> dict[str, torch.Tensor]:
    """The base's weights."""
    found = base_of(tiny_model_folder).state_dict()
    return {name: value.detach().double() for name, value in found.items()}


@pytest.fixture(scope="module")
def effects(tiny_model_folder, silos, bare) -> dict[str, dict[str, torch.Tensor]]:
    """Folder → what it adds to each weight of the base, by PEFT."""
    found = {}
    for name, folder in silos.items():
        merged = weights_of(tiny_model_folder, folder)
        found[name] = {key: merged[key] - bare[key] for key in bare}
    return found


def summed(effects, weights) -> dict[str, torch.Tensor]:
    """The weighted sum of the effects."""
    first = next(iter(effects.values()))
    return {
        key: sum(w * one[key] for w, one in zip(weights, effects.values(), strict=True))
        for key in first
    }


@pytest.mark.parametrize(("rule", "settings"), [("stack", {}), ("core_svd", {"rank": 14})])
def test_merge_by_an_exact_rule_is_the_weighted_sum_in_peft(
    tiny_model_folder, silos, effects, bare, tmp_path, rule, settings
):
    """Effective weights, by PEFT: merged = Σ p_i · silo's, over ranks, scales, rsLoRA, targets."""
    told = merge_folders(
        list(silos.values()), tmp_path / "out", rule=rule, settings=settings, weights=WEIGHTS
    )
    merged = weights_of(tiny_model_folder, tmp_path / "out")
    wanted = summed(effects, WEIGHTS)
    top = max(float(one.abs().max()) for one in wanted.values())
    for key, change in wanted.items():
        torch.testing.assert_close(merged[key] - bare[key], change, rtol=0, atol=2e-6 * top)  # fp32
    assert told.error is not None
    assert told.error < 1e-6
    assert told.norm == pytest.approx(told.target_norm, rel=1e-6)


def test_merge_of_one_target_list_keeps_it(tiny_model_folder, silos, effects, bare, tmp_path):
    """Folders of the same targets give them back; core_svd at a lower rank reports its loss."""
    three = [silos[name] for name in ("plain", "rslora", "patterns")]
    told = merge_folders(three, tmp_path / "out", rule="core_svd")
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert config["target_modules"] == ["q_proj", "v_proj"]
    assert told.ranks == (4, 5)
    merged = weights_of(tiny_model_folder, tmp_path / "out")
    wanted = summed({n: effects[n] for n in ("plain", "rslora", "patterns")}, [1 / 3] * 3)
    lost = sum(float((merged[k] - bare[k] - wanted[k]).square().sum()) for k in bare)
    whole = sum(float(one.square().sum()) for one in wanted.values())
    assert told.error == pytest.approx((lost / whole) ** 0.5, rel=1e-4)  # fp32 weights
    assert told.report["discarded_energy"] == pytest.approx(told.error**2, rel=1e-4)


def test_merge_names_modules_where_a_pattern_chose_them(
    tiny_model_folder, silos, effects, bare, tmp_path
):
    """A regular expression as target list, and two names of one base with --base, come out well."""
    words = {"target_modules": r".*self_attn\.(q|v)_proj", "base_model_name_or_path": "other"}
    odd = edited(silos["plain"], tmp_path / "odd", **words)
    name = str(tiny_model_folder)
    merge_folders([odd, silos["rslora"]], tmp_path / "out", rule="stack", base=name)
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert "model.layers.0.self_attn.q_proj" in config["target_modules"]
    assert config["base_model_name_or_path"] == name
    merged = weights_of(tiny_model_folder, tmp_path / "out")
    wanted = summed({n: effects[n] for n in ("plain", "rslora")}, (0.5, 0.5))
    for key, change in wanted.items():
        torch.testing.assert_close(merged[key] - bare[key], change, rtol=0, atol=1e-5)  # fp32


def test_merge_averages_whole_modules(tiny_model_folder, tmp_path):
    """modules_to_save becomes the mean with the same weights, and PEFT loads it."""
    settings = {"r": 2, "lora_alpha": 4, "target_modules": ["q_proj"]}
    silos = [
        save(tiny_model_folder, tmp_path / str(s), s, modules_to_save=["lm_head"], **settings)
        for s in (1, 2)
    ]
    told = merge_folders(silos, tmp_path / "out", rule="stack", weights=(3.0, 1.0))
    assert told.saved == ("lm_head.weight",)
    heads = [weights_of(tiny_model_folder, silo)["lm_head.weight"] for silo in silos]
    found = weights_of(tiny_model_folder, tmp_path / "out")["lm_head.weight"]
    torch.testing.assert_close(found, 0.75 * heads[0] + 0.25 * heads[1], rtol=1e-6, atol=1e-7)
    plain = save(tiny_model_folder, tmp_path / "plain", 3, **settings)
    with pytest.raises(CurationError, match="modules_to_save"):
        merge_folders([silos[0], plain], tmp_path / "no", rule="stack")
    assert not (tmp_path / "no").exists()


def edited(folder: Path, target: Path, arrays=None, **keys) -> Path:
    """A copy of an adapter folder with other settings or arrays."""
    target.mkdir()
    config = json.loads((folder / "adapter_config.json").read_text()) | keys
    (target / "adapter_config.json").write_text(json.dumps(config))
    weights = load_file(folder / "adapter_model.safetensors") | (arrays or {})
    save_file(weights, target / "adapter_model.safetensors")
    return target


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"use_dora": True}, "use_dora"),
        ({"bias": "lora_only"}, "bias"),
        ({"peft_type": "IA3"}, "peft_type"),
        ({"init_lora_weights": "loftq"}, "init_lora_weights"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights"),
        ({"trainable_token_indices": [1]}, "trainable_token_indices"),
        ({"lora_bias": True}, "lora_bias"),
        ({"layer_replication": [[0, 1]]}, "layer_replication"),
        ({"future_variant": {"x": 1}}, "future_variant"),
        ({"base_model_name_or_path": "elsewhere"}, "--base"),
        ({"fan_in_fan_out": True}, "fan_in_fan_out"),
        ({"lora_alpha": 0}, "lora_alpha"),
    ],
)
def test_merge_refuses_by_name(silos, tmp_path, keys, said):
    """What a pair of factors cannot say is refused with folder and setting; nothing is written."""
    odd = edited(silos["plain"], tmp_path / "odd", **keys)
    with pytest.raises(CurationError, match=said) as caught:
        merge_folders([silos["rslora"], odd], tmp_path / "out", rule="stack")
    assert "odd" in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_merge_refuses_arrays_that_do_not_fit(silos, tmp_path):
    """Strange arrays, half a pair, another width and a NaN are named."""
    first = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
    cases = {
        "lora_embedding_A": {"base_model.model.x.lora_embedding_A": torch.ones(2, 2)},
        "lora_magnitude": {"base_model.model.x.lora_magnitude_vector.weight": torch.ones(2)},
        "pairs of lora_A and lora_B": {"base_model.model.x.lora_A.weight": torch.ones(2, 2)},
        r"outputs and inputs \(32, 32\)": {first: torch.ones(4, 9)},
        "linear layers": {first: torch.ones(4, 32, 1)},
        "NaN": {first: torch.full((4, 32), torch.nan)},
    }
    for place_, (said, arrays) in enumerate(cases.items()):
        odd = edited(silos["plain"], tmp_path / f"odd{place_}", arrays)
        with pytest.raises(CurationError, match=said):
            merge_folders([silos["rslora"], odd], tmp_path / "out", rule="stack")
    with pytest.raises(CurationError, match="nowhere"):
        merge_folders([silos["plain"], tmp_path / "nowhere"], tmp_path / "out", rule="stack")
    assert not (tmp_path / "out").exists()


def test_merge_refuses_weights_and_places_that_do_not_fit(silos, tmp_path):
    """As many weights as folders, a folder once, a new place for the result, a known rule."""
    two = [silos["plain"], silos["rslora"]]
    for weights in ((1.0,), (1.0, -1.0), (0.0, 0.0), (1.0, float("nan"))):
        with pytest.raises(CurationError, match="--weight"):
            merge_folders(two, tmp_path / "out", rule="stack", weights=weights)
    with pytest.raises(CurationError, match="twice"):
        merge_folders([silos["plain"]] * 2, tmp_path / "out", rule="stack")
    with pytest.raises(CurationError, match="something already"):
        merge_folders(two, silos["plain"], rule="stack")
    with pytest.raises(CurationError, match=r"unknown; choose one of.*core_svd.*flower:"):
        merge_folders(two, tmp_path / "out", rule="no_such_rule")


def test_merge_is_written_whole_or_not_at_all(silos, tmp_path, monkeypatch):
    """A full disk leaves nothing behind at the place of the result."""

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(adapter_folders, "save_file", full)
    with pytest.raises(CurationError, match="No space left"):
        merge_folders([silos["plain"], silos["rslora"]], tmp_path / "out", rule="stack")
    assert not (tmp_path / "out").exists()


def test_merge_refuses_rules_whose_result_no_folder_holds(silos, tmp_path):
    """A change of the base, sparse differences, and sites that did not share A are named."""
    two = [silos["plain"], silos["rslora"]]
    for rule, said in (
        ("flora", "changes the base model"),
        ("fedex", "changes the base model"),
        ("sparse_sum", "a sparse difference of weights"),
        ("freeze_a", "--rule freeze_a needs folders with one lora_A.*rslora.*plain"),
        ("alternate", "--rule alternate needs"),
        ("fedsvd", "--rule fedsvd needs"),
        ("flower:FedAvg", "--rule flower:FedAvg refuses these folders.*rank"),
    ):
        with pytest.raises(InputError, match=said) as caught:
            merge_folders(two, tmp_path / "out", rule=rule)
        assert not re.search(r"site|merging\.name|training\.", str(caught.value))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("rule", ["linear", "ties", "dare", "dare_ties", "knots", "fedavg_factors"])
def test_merge_by_any_other_rule_gives_a_folder_and_its_distance(silos, tmp_path, rule):
    """Rules that bend the sum write an adapter of finite norm, and say how far it lies off."""
    told = merge_folders(list(silos.values()), tmp_path / "out", rule=rule, weights=WEIGHTS)
    assert 0 < told.norm < float("inf")
    assert told.error is not None
    assert told.error > 0
    compared = open_adapter(tmp_path / "out").adapter
    assert set(compared.modules) == set(load_adapter(tmp_path / "out", base="base").modules)


def run(*words):
    """The command line in this process: exit code or the error, and what it printed."""
    return CliRunner().invoke(app, [str(word) for word in words])


def test_merge_and_diff_from_the_command_line(silos, tmp_path):
    """Tables for people, JSON for programs, a picture; an adapter does not differ from itself."""
    a, b, out = silos["plain"], silos["rslora"], tmp_path / "out"
    done = run("merge", a, b, "--rule", "stack", "--out", out, "--weight", 3, "--weight", 1)
    assert done.exit_code == 0, done.output
    assert "Merged by stack" in done.output
    assert "discarded_energy" in done.output
    words = ("--set", "rank=2", "--json")
    told = json.loads(run("merge", a, b, "--out", tmp_path / "b", *words).stdout)
    assert told["ranks"] == [2, 2]
    assert [part["weight"] for part in told["parts"]] == [0.5, 0.5]
    same = json.loads(run("diff", a, a, "--json").stdout)
    assert same["angle"] == pytest.approx(0, abs=1e-6)
    picture = tmp_path / "diff.svg"
    done = run("diff", a, silos["other targets"], "--picture", picture)
    assert done.exit_code == 0, done.output
    assert "angles in degrees" in done.output
    drawn = picture.read_text()
    assert drawn.startswith("<svg")
    assert "self_attn.q_proj" in drawn
    assert "angle of the products" in drawn
    assert isinstance(run("diff", a).exception, CurationError)
    assert isinstance(run("diff", a, b, "--picture", tmp_path / "x.png").exception, CurationError)


def test_picture_places_modules_by_layer():
    """The first number of a name is its layer, in order of numbers; others stand apart."""
    assert module_place("model.layers.10.mlp.experts.3.up") == ("10", "mlp.experts.3.up")
    assert module_place("lm_head") == ("–", "lm_head")
    layers, modules = axes_of(["m.layers.10.q", "m.layers.2.q", "lm_head"])
    assert layers == ["2", "10", "–"]
    assert modules == ["lm_head", "q"]


def test_merge_and_diff_speak_of_folders_where_training_diverged(silos, tmp_path):
    """A NaN is an error of the input that names folder, module and factor, and no site."""
    first = "base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight"
    bad = edited(silos["plain"], tmp_path / "bad", {first: torch.full((32, 4), torch.nan)})
    for words in (("merge", silos["plain"], bad, "--out", tmp_path / "out"),
                  ("diff", silos["plain"], bad)):  # fmt: skip
        error = run(*words).exception
        assert isinstance(error, InputError)
        assert re.search(r"bad, module .*q_proj: expected finite.*lora_B", str(error))
        assert "site" not in str(error)


def test_folders_that_cannot_be_read_say_what_to_change(silos, tmp_path):
    """No folder, an empty one, a pickle, a file cut short, half a pair, a sparse folder."""
    whole = silos["plain"]
    places = [tmp_path / n for n in ("empty", "pickled", "short", "bare", "half", "sparse")]
    empty, pickled, short, bare, half, sparse = places
    empty.mkdir()
    for copy in places[1:]:
        shutil.copytree(whole, copy)
    (pickled / "adapter_model.safetensors").rename(pickled / "adapter_model.bin")
    weights = (whole / "adapter_model.safetensors").read_bytes()
    (short / "adapter_model.safetensors").write_bytes(weights[: len(weights) // 2])
    (bare / "adapter_model.safetensors").unlink()
    arrays = load_file(whole / "adapter_model.safetensors")
    lacking = next(key for key in sorted(arrays) if key.endswith("lora_B.weight"))
    kept = {key: value for key, value in arrays.items() if key != lacking}
    save_file(kept, half / "adapter_model.safetensors")
    config = json.loads((whole / "adapter_config.json").read_text()) | {"peft_type": "SHIRA"}
    (sparse / "adapter_config.json").write_text(json.dumps(config))
    for folder, said in (
        (tmp_path / "missing", "there is no such folder"),
        (empty, "adapter_config.json, and there is none"),
        (pickled, "safe_serialization=True"),
        (short, "cut short"),
        (bare, "expected adapter_model.safetensors, and there is none"),
        (half, "has lora_A and no lora_B"),
        (sparse, "--rule sparse_sum"),
    ):
        with pytest.raises(ModelError, match=said) as caught:
            open_adapter(folder)
        assert str(folder) in str(caught.value)
        assert "Errno" not in str(caught.value)


def test_weights_of_any_finite_size_are_brought_to_sum_one(silos):
    """1e308 twice is a half each, though their sum is beyond what a float holds."""
    two = [silos["plain"], silos["rslora"]]
    assert list(folder_shares(two, (1e308, 1e308)).values()) == [0.5, 0.5]
    assert list(folder_shares(two, (3.0, 1.0)).values()) == [0.75, 0.25]
    assert sum(folder_shares(two, (5e-324, 1e308)).values()) == 1.0


def test_merge_names_the_form_of_its_settings(silos, tmp_path):
    """--set of merge has no sections, and the error says so."""
    done = run("merge", silos["plain"], silos["rslora"], "--out", tmp_path / "o", "--set", "rank")
    assert isinstance(done.exception, ConfigError)
    assert "expected key=value" in str(done.exception)


def test_diff_warns_of_two_bases_and_goes_on(silos, tmp_path):
    """Other base names are a warning on stderr: one model may have two names."""
    other = edited(silos["rslora"], tmp_path / "other", base_model_name_or_path="elsewhere")
    done = run("diff", silos["plain"], other, "--json")
    assert done.exit_code == 0
    assert json.loads(done.stdout)["modules"]
    assert re.search(r"warning: .*different base models.*other: elsewhere", done.stderr)
    assert "warning" not in run("diff", silos["plain"], silos["rslora"]).stderr


def test_diff_of_nothing_in_common_is_an_input_error(silos, tiny_model_folder, tmp_path):
    """Folders are named, and the exit code is that of a wrong input."""
    lone = save(tiny_model_folder, tmp_path / "lone", 9, r=2, target_modules=["down_proj"])
    error = run("diff", silos["plain"], lone).exception
    assert isinstance(error, ModelError)
    assert "lone" in str(error)


def compared(layers: int, columns: int) -> Comparison:
    """Made-up figures of a model, and one module that only the first adapter changes."""
    names = ("self_attn.q_proj", "self_attn.v_proj", "mlp.gate_proj", "mlp.up_proj")[:columns]
    modules = {
        f"model.layers.{layer}.{name}": Difference(
            norms=(1.25 + layer, 0.5), angle=45.0, output_angles=(1.0,), input_angles=(1.0,),
            outside=0.25, discarded=0.125,
        )
        for layer in range(layers)
        for name in names
    }  # fmt: skip
    alone = {"model.layers.0.mlp.down_proj": 7.5}
    return Comparison(modules=modules, alone=(alone, {}), norms=(1.0, 1.0), angle=45.0)


@pytest.mark.parametrize(
    ("layers", "columns"), [(1, 1), (2, 2), (12, 4), pytest.param(60, 4, marks=pytest.mark.flower)]
)
def test_picture_keeps_every_label_inside_and_apart_from_the_title(layers, columns):
    """No text leaves the figure, no title or label overlaps another, whatever the size."""
    figure = heat_map_figure(
        compared(layers, columns), title="runs/one/adapter and runs/another/adapter"
    )
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    renderer = canvas.get_renderer()
    tight, (width, height) = figure.get_tightbbox(renderer), figure.get_size_inches()
    assert min(tight.x0, tight.y0) >= 0
    assert tight.x1 <= width
    assert tight.y1 <= height
    shown = [one for one in figure.findobj(Text) if one.get_text() and one.get_visible()]
    shown = [one for one in shown if one.axes is None or one.axes.axison or one in one.axes.texts]
    titles = [one.title for one in figure.axes] + [one._left_title for one in figure.axes]
    titles = [figure._suptitle, *(one for one in titles if one.get_text())]
    boxes = [(one, one.get_window_extent(renderer)) for one in titles]
    for one, box in boxes:
        others = [t for t in shown if t is not one and box.overlaps(t.get_window_extent(renderer))]
        assert [t.get_text() for t in others] == []


def test_picture_shows_norms_angles_and_energies():
    """Five maps by name, with the numbers of each; a module of one adapter alone has its norm."""
    text = heat_maps(compared(2, 2), title="A and B")
    for words in ("of A", "of B", "angle of the products", "outside a common", "merge discards"):
        assert words in text
    numbers = Counter(re.findall(r">([0-9.]+)</text>", text))
    assert numbers["1.25"] == numbers["2.25"] == 2
    assert numbers["45"] == 4
    assert numbers["7.5"] == 1
    assert numbers["0.12"] == 4
    assert numbers["0.25"] >= 4
