"""Laws of what is refused before any pass: too few embeddings, too few positions."""

import pytest
import transformers as tf
from chat_templates import family_tokenizer

from fedwinnow.curation.config.scoring import AdapterSection, ModelSection, TeacherSection
from fedwinnow.curation.datatypes import Sample
from fedwinnow.curation.errors import ModelError
from fedwinnow.curation.model.load_checks import positions
from fedwinnow.curation.model.pretrained import adopt_model, encode, load_model, load_teacher

SMALL = {"num_hidden_layers": 1, "num_attention_heads": 2, "hidden_size": 8}


def gpt2(**more):
    return tf.GPT2LMHeadModel(
        tf.GPT2Config(n_embd=8, n_layer=1, n_head=2, n_positions=40, **{"vocab_size": 400} | more)
    )


def opt():
    sizes = {"ffn_dim": 8, "word_embed_proj_dim": 8, "vocab_size": 400}
    return tf.OPTForCausalLM(tf.OPTConfig(max_position_embeddings=40, **SMALL, **sizes))


def gptj():
    sizes = {"n_embd": 16, "n_layer": 1, "n_head": 2, "rotary_dim": 4, "vocab_size": 400}
    return tf.GPTJForCausalLM(tf.GPTJConfig(n_positions=40, **sizes))


def roberta():
    sizes = {"intermediate_size": 8, "vocab_size": 400, "is_decoder": True}
    return tf.RobertaForCausalLM(tf.RobertaConfig(max_position_embeddings=42, **SMALL, **sizes))


def llama(rows=400):
    sizes = {"intermediate_size": 8, "vocab_size": rows, "bos_token_id": None, "eos_token_id": None}
    return tf.LlamaForCausalLM(tf.LlamaConfig(max_position_embeddings=40, **SMALL, **sizes))


@pytest.mark.parametrize(
    ("make", "most"), [(gpt2, 40), (opt, 40), (gptj, 40), (roberta, 40), (llama, 0)]
)
def test_positions_are_those_that_a_pass_can_reach(make, most):
    """Oracle: a pass of so many tokens runs; one token more ends in an index error, if any."""
    import torch

    model = make().eval()
    assert positions(model) == most
    with torch.no_grad():
        model(input_ids=torch.full((1, 40), 7, dtype=torch.int64))
        if most:
            with pytest.raises((IndexError, RuntimeError)):
                model(input_ids=torch.full((1, 43), 7, dtype=torch.int64))


@pytest.fixture
def folder(tmp_path):
    """Write a model with a tokenizer; return its folder."""

    def write(model, name="m"):
        for part in (model, family_tokenizer("chatml other eos")):
            part.save_pretrained(tmp_path / name)
        return str(tmp_path / name)

    return write


def test_more_tokens_than_embeddings_are_refused(folder):
    """Law: the setting, both numbers and the cure are named, for model, teacher and own model."""
    rows = len(family_tokenizer("chatml other eos"))
    few, enough = folder(llama(rows - 1), "few"), folder(llama(rows), "enough")
    told = rf"embeds {rows - 1} tokens, the tokenizer has {rows}; .*resize_token_embeddings"
    section = AdapterSection(rank=1, targets=("q_proj",))
    with pytest.raises(ModelError, match=rf"model\.name: '{few}' {told}"):
        load_model(ModelSection(name=few), section, seed=0)
    with pytest.raises(ModelError, match=rf"teacher\.name: '{few}' {told}"):
        load_teacher(TeacherSection(name=few), ModelSection(name=enough))
    with pytest.raises(ModelError, match=rf"load_model: LlamaForCausalLM {told}"):
        adopt_model(llama(rows - 1), family_tokenizer("chatml other eos"), section, seed=0)
    load_model(ModelSection(name=enough), section, seed=0)


def test_samples_longer_than_the_positions_are_refused(folder):
    """Law: model.max_length is named before any pass, for model, teacher and own model."""
    short, long = folder(gpt2(), "short"), folder(llama(), "long")
    section = AdapterSection(rank=1, targets=("c_attn",))
    for what, load in (
        ("model.name", lambda most: load_model(most, section, seed=0)),
        ("teacher.name", lambda most: load_teacher(TeacherSection(name=short), most)),
    ):
        name = short if what == "model.name" else long
        told = rf"model\.max_length = 41: the model of {what} has 40 learned positions.*at most 40"
        with pytest.raises(ModelError, match=told):
            load(ModelSection(name=name, max_length=41))
    own = adopt_model(opt(), family_tokenizer("chatml"), AdapterSection(rank=1), seed=0)
    sample = Sample(id="s", prompt="p", response="r")
    assert encode(own, sample, max_length=40).has_target
    with pytest.raises(ModelError, match=r"model\.max_length = 41"):
        encode(own, sample, max_length=41)
