"""Laws of module names across folders: wrappers, prefixes, duplicates; never half a merge."""

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from fedwinnow.curation.adapters.module_names import check_common_modules, common_spelling
from fedwinnow.curation.adapters.peft_folder import export_adapter, load_adapter
from fedwinnow.curation.adapters.peft_keys import PREFIX, WRAPPERS, module_name
from fedwinnow.curation.adapters.peft_reader import open_adapter
from fedwinnow.curation.adapters.shira_folder import export_sparse, open_entries
from fedwinnow.curation.datatypes import Adapter, SparseAdapter
from fedwinnow.curation.errors import CurationError, ModelError
from fedwinnow.server.adapter_tools.folder_checks import check_copies, check_vocabulary
from fedwinnow.server.adapter_tools.merge_folders import merge_folders

Q, V = "model.layers.0.self_attn.q_proj", "model.layers.1.self_attn.v_proj"


def folder(place, seed=0, names=(Q, V), rank=2, kind=torch.float32, **words):
    """A folder of random factors of two modules, 5 by 4."""
    draw = torch.Generator().manual_seed(seed)
    one = Adapter(
        base="base",
        a={name: torch.randn(rank, 4, generator=draw).to(kind) for name in names},
        b={name: torch.randn(5, rank, generator=draw).to(kind) for name in names},
        scales=dict.fromkeys(names, 2.0),
    )
    export_adapter(one, place, base_name="here", target_modules=names, **words)
    return place


def rekeyed(place, change, more=None, **settings):
    """The same folder with other keys, arrays and settings."""
    file, config = place / "adapter_model.safetensors", place / "adapter_config.json"
    arrays = {change(key): value for key, value in load_file(file).items()}
    save_file(arrays | (more or {}), file)
    config.write_text(json.dumps(json.loads(config.read_text()) | settings))
    return place


def base(place, names):
    """A local base model whose files hold these modules."""
    place.mkdir()
    save_file({f"{name}.weight": torch.ones(5, 4) for name in names}, place / "m.safetensors")
    return str(place)


@given(
    st.lists(st.sampled_from(["layers", "0", "attn", "q_proj", "model"]), min_size=1),
    st.lists(st.tuples(st.integers(0, 9), st.sampled_from(sorted(WRAPPERS))), max_size=3),
    st.booleans(),
)
def test_name_of_a_module_is_the_same_under_any_wrapper(parts, wraps, front):
    """Law: wrappers anywhere, and module. in front of all, leave the name; twice is once."""
    wrapped = list(parts)
    for place, wrapper in wraps:
        wrapped.insert(min(place, len(wrapped)), wrapper)
    key = "module." * front + PREFIX + ".".join(wrapped)
    assert module_name(key) == ".".join(parts)
    assert module_name(PREFIX + module_name(key)) == module_name(key)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (PREFIX, f"{PREFIX}_orig_mod."),
        ("self_attn.", "_fsdp_wrapped_module._checkpoint_wrapped_module.self_attn."),
        (PREFIX, f"module.{PREFIX}"),
        (PREFIX, f"module._orig_mod.{PREFIX}"),
        (".weight", ".default.weight"),
    ],
)
def test_wrapped_keys_hold_the_adapter_that_was_wrapped(tmp_path, old, new):
    """Equivalence: keys of a wrapped model, or with the adapter's name, are those of the model."""
    plain = open_adapter(folder(tmp_path / "plain"))
    same = rekeyed(folder(tmp_path / "same"), lambda key: key.replace(old, new, 1))
    found = open_adapter(same)
    assert found.shapes == plain.shapes
    assert found.adapter.scales == plain.adapter.scales
    assert all(torch.equal(found.adapter.a[m], plain.adapter.a[m]) for m in (Q, V))


def test_patterns_are_matched_to_the_name_at_training(tmp_path):
    """Law: a pattern anchored at a wrapped name still gives that module its alpha and rank."""
    same = rekeyed(
        folder(tmp_path / "a"),
        lambda key: key.replace(PREFIX, f"{PREFIX}_orig_mod."),
        alpha_pattern={rf"^_orig_mod\.{Q}$": 12.0, rf"^{V}$": 6},
        rank_pattern={rf"^_orig_mod\.{Q}$": 2},
        r=2,
    )
    assert open_adapter(same).adapter.scales == {Q: 6.0, V: 3.0}


def test_two_keys_of_one_module_are_refused(tmp_path):
    """Edge: a file that mixes spellings or adapters names both keys and the module."""
    key = f"{PREFIX}{Q}.lora_A"
    for other in (f"{PREFIX}_orig_mod.{Q}.lora_A.weight", f"{key}.second.weight"):
        one = folder(tmp_path / other.replace("/", "_"))
        rekeyed(one, str, {other: torch.ones(2, 4)})
        with pytest.raises(ModelError, match=rf"keys .* both come to {Q}") as caught:
            open_adapter(one)
        assert other in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"r": 3}, r"q_proj: adapter_config\.json says r = 3, .*rank 2"),
        ({"r": True}, "says r = True"),
        ({"rank_pattern": {"q_proj": 7}}, r"says rank_pattern\['q_proj'\] = 7"),
        ({"rank_pattern": {"(": 7}}, "rank_pattern = a table of at most .* regular expressions"),
        ({"alpha_pattern": {"v_proj": -1}}, r"finite alpha_pattern\['v_proj'\] above 0, got -1"),
        ({"lora_alpha": float("inf")}, "'lora_alpha' with finite numbers"),
    ],
)
def test_configuration_that_is_not_the_files_is_refused(tmp_path, settings, said):
    """Law: PEFT would take the configuration's rank and scale; a file of another is named."""
    one = rekeyed(folder(tmp_path / "a"), str, **settings)
    with pytest.raises(ModelError, match=said):
        open_adapter(one)


@pytest.mark.parametrize("shape", [(0, 4), (2, 0), (4,), (2, 4, 1)])
def test_arrays_that_are_no_factor_are_refused(tmp_path, shape):
    """Edge: rank zero, no input, vectors and kernels; whole numbers; each names the module."""
    for kind in (torch.float32, torch.int8, torch.float8_e4m3fn):
        one = folder(tmp_path / str(kind))
        size = shape if kind == torch.float32 else (2, 4)
        rekeyed(one, str, {f"{PREFIX}{Q}.lora_A.weight": torch.zeros(size).to(kind)})
        with pytest.raises(ModelError, match=rf"module {Q}: expected floating-point A"):
            open_adapter(one)


SPELT = {
    "bare": lambda key: key.replace("model.model.model.", "model.model."),
    "extra": lambda key: key.replace("model.model.model.", "model.model.model.language_model."),
}


@pytest.mark.parametrize("way", sorted(SPELT))
def test_other_prefixes_are_settled_by_the_base_or_refused(tmp_path, way):
    """Equivalence: with the base's files a merge is that of equal names; without, a refusal."""
    one, odd = folder(tmp_path / "one", 1), rekeyed(folder(tmp_path / "odd", 2), SPELT[way])
    same = folder(tmp_path / "same", 2)
    for two in ((one, odd), (odd, one)):
        with pytest.raises(ModelError, match=r"both end in layers\.0.*give --base"):
            merge_folders(two, tmp_path / "no", rule="stack")
    named = base(tmp_path / "base", (Q, V))
    told = merge_folders([odd, one], tmp_path / "out", rule="stack", base=named)
    merge_folders([same, one], tmp_path / "wanted", rule="stack", base=named)
    assert list(told.renamed) == [str(odd)]
    found, wanted = (load_adapter(tmp_path / word, base="b") for word in ("out", "wanted"))
    assert found.modules == wanted.modules == (Q, V)
    for module in (Q, V):
        torch.testing.assert_close(
            found.b[module] @ found.a[module], wanted.b[module] @ wanted.a[module]
        )
    short = base(tmp_path / "short", ("layers.0.self_attn.q_proj", "layers.1.self_attn.v_proj"))
    with pytest.raises(ModelError, match="the base's files do not say which name is right"):
        merge_folders([odd, one], tmp_path / "no", rule="stack", base=short)


def test_modules_with_one_end_in_one_folder_are_two_modules(tmp_path):
    """Law: a text and a vision layer of one folder are told apart, and no name changes."""
    names = (Q, "visual.layers.0.self_attn.q_proj")
    opened = [open_adapter(folder(tmp_path / n, names=names)) for n in ("a", "b")]
    opened.append(open_adapter(folder(tmp_path / "c", names=(Q,))))
    found, renamed = common_spelling(opened)
    assert renamed == {}
    assert [one.adapter.modules for one in found] == [names, names, (Q,)]
    apart = [
        open_adapter(folder(tmp_path / n, names=(m,))) for n, m in zip("de", names, strict=True)
    ]
    with pytest.raises(ModelError, match="both end in"):
        common_spelling(apart)
    found, _ = common_spelling(apart, base(tmp_path / "base", names))
    with pytest.raises(ModelError, match="changes no module that another folder changes"):
        check_common_modules({str(one.folder): one.shapes for one in found})


def test_copies_of_the_base_agree_or_are_refused(tmp_path):
    """Law: the base's own weight beside factors is copied once; another base is named."""
    head = torch.randn(5, 4, generator=torch.Generator().manual_seed(1))
    names = (Q, "lm_head")

    def one(word, value=None, kind=torch.float32, **more):
        saved = {} if value is None else {"lm_head.weight": value.to(kind)}
        return folder(tmp_path / word, 3, names, kind=kind, saved=saved, **more)

    a, b = one("a", head), one("b", head, torch.bfloat16)
    opened = {word: open_adapter(place) for word, place in (("a", a), ("b", b))}
    check_copies(opened)
    told = merge_folders([b, a], tmp_path / "out", rule="stack")
    assert told.copied == ("lm_head.weight",)
    arrays = load_file(tmp_path / "out" / "adapter_model.safetensors")
    assert torch.equal(arrays[f"{PREFIX}lm_head.base_layer.weight"], head)
    with pytest.raises(CurationError, match=r"expected factors of linear layers only.*base's own"):
        load_adapter(a, base="b")
    with pytest.raises(ModelError, match=r"copy of the base's lm_head\.weight is another"):
        merge_folders([a, one("c", head + 1)], tmp_path / "no", rule="stack")
    told = merge_folders([a, folder(tmp_path / "d")], tmp_path / "two", rule="stack")
    assert told.copied == ("lm_head.weight",)
    resized = folder(tmp_path / "e", saved={"lm_head.weight": head})
    with pytest.raises(ModelError, match=r"lacks lm_head\.weight.*another vocabulary"):
        merge_folders([resized, folder(tmp_path / "f", 4)], tmp_path / "no", rule="stack")


def test_an_embedding_in_one_folder_alone_is_refused(tmp_path):
    """Edge: factors of an embedding and of a linear layer of one name are no one module."""
    two = [folder(tmp_path / "a"), folder(tmp_path / "b", embeddings=(V,))]
    opened = {str(place): open_adapter(place) for place in two}
    assert opened[str(two[1])].embeddings == {V}
    with pytest.raises(ModelError, match=rf"a: {V} is a linear layer, and an embedding in .*b;"):
        check_vocabulary(opened)
    with pytest.raises(CurationError, match="factors of an embedding"):
        load_adapter(two[1], base="b")


def test_factors_that_a_tie_joins_must_be_transposed(tmp_path):
    """Law: ensure_weight_tying reads both into one memory, so others than transposes are named."""
    embedding, head = "model.embed_tokens", "lm_head"
    draw = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, 5, generator=draw), torch.randn(4, 2, generator=draw)

    def tied(word, factor):
        one = Adapter(
            base="b", a={embedding: a, head: b.T}, b={embedding: b, head: factor},
            scales={embedding: 1.0, head: 1.0},
        )  # fmt: skip
        export_adapter(
            one, tmp_path / word, base_name="b", target_modules=(embedding,),
            embeddings=(embedding,), settings={"ensure_weight_tying": True},
        )  # fmt: skip
        return open_adapter(tmp_path / word)

    assert set(tied("good", a.T).adapter.modules) == {embedding, head}
    with pytest.raises(ModelError, match="ensure_weight_tying = true"):
        tied("bad", a.T + 1)


@pytest.mark.parametrize("rule", ["stack", "core_svd", "fedavg_factors"])
def test_number_format_does_not_depend_on_the_order(tmp_path, rule):
    """Law: the format that holds every input; permuting the folders changes no format."""
    f16, b16, f32 = torch.float16, torch.bfloat16, torch.float32
    for kinds, expected in (((b16, b16), b16), ((b16, f16), f32), ((f16, f32), f32)):
        places = [
            folder(tmp_path / f"{expected}{i}{kinds}", i, kind=kind) for i, kind in enumerate(kinds)
        ]
        for way in (places, places[::-1]):
            merge_folders(way, tmp_path / f"out{kinds}{way[0].name}", rule=rule)
            file = tmp_path / f"out{kinds}{way[0].name}" / "adapter_model.safetensors"
            assert {value.dtype for value in load_file(file).values()} == {expected}


def test_sparse_folders_know_names_and_formats(tmp_path):
    """Equivalence: wrapped and bare names, formats in any order; two names of one are refused."""

    def one(word, kind=torch.float32, name=Q):
        made = SparseAdapter(
            base="b",
            indices={f"{name}.weight": torch.tensor([0, 19])},
            values={f"{name}.weight": torch.tensor([1.0, 3.0]).to(kind)},
            shapes={f"{name}.weight": (5, 4)},
        )
        words = {"base_name": "b", "target_modules": ("q_proj",), "task_type": None}
        export_sparse(made, tmp_path / word, **words)
        return tmp_path / word

    whole = {"density": 1.0}
    plain, odd = one("plain"), one("odd")
    rekeyed(odd, lambda key: key.replace(PREFIX, f"{PREFIX}_orig_mod."))
    assert torch.equal(open_entries(odd).values[Q], open_entries(plain).values[Q])
    bare, half = one("bare", name=Q.removeprefix("model.")), one("half", torch.bfloat16)
    for i, two in enumerate(((plain, half), (half, plain))):
        merge_folders(two, tmp_path / f"out{i}", rule="sparse_sum", settings=whole)
        assert open_entries(tmp_path / f"out{i}").values[Q].dtype == torch.float32
    with pytest.raises(ModelError, match="give --base"):
        merge_folders([plain, bare], tmp_path / "no", rule="sparse_sum", settings=whole)
    named = base(tmp_path / "base", (Q,))
    told = merge_folders(
        [plain, bare], tmp_path / "out", rule="sparse_sum", settings=whole, base=named
    )
    assert told.renamed == {str(bare): f"{Q.removeprefix('model.')} → {Q}"}
    entries = open_entries(tmp_path / "out")
    assert list(entries.sums) == [Q]
    assert entries.values[Q].sum() == 4.0
    rekeyed(odd, str, load_file(plain / "adapter_model.safetensors"))
    with pytest.raises(ModelError, match=f"two keys come to {Q}"):
        open_entries(odd)
