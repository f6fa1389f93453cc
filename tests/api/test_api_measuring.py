"""Laws of measuring from Python: the command line's numbers, and own models untouched."""

import json
import math
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer
from warmed import warmed

import fedwinnow as fw
from fedwinnow.curation.model.lora_model import get_adapter
from fedwinnow.simulations.datasets.toy_federation import toy_rows

COLUMNS = ("loss", "end_loss", "representation", "dot", "norm", "adam_dot", "adam_norm")
SHORT = ("model.max_length=96",)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A folder with anchors and data."""
    folder = tmp_path_factory.mktemp("files")
    for name, number, wrong in (("anchors", 24, 0.0), ("data", 12, 0.5)):
        rows = toy_rows(number, 50 + number, wrong=wrong)
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"{name}.jsonl").write_text(text, encoding="utf-8")
    return folder


@pytest.fixture
def opened(files):
    """Anchors and samples."""
    return fw.open_samples(files / "anchors.jsonl"), fw.open_samples(files / "data.jsonl")


def equal(one, other):
    """Whether two tables hold the same numbers, bit for bit."""
    same = all(np.array_equal(one.columns[k], other.columns[k]) for k in other.columns)
    return same and one.ids == other.ids and set(one.columns) == set(other.columns)


def test_own_peft_model_gives_the_numbers_of_the_model_by_path(tiny_model_folder, opened, tmp_path):
    """Bit for bit, dropout or not; and the model is afterwards what it was before."""
    anchors, samples = opened
    by_path = fw.load_model(tiny_model_folder, rank=4)
    warmed(by_path)
    fw.save_adapter(get_adapter(by_path), tmp_path / "adapter", base=str(tiny_model_folder))
    config = tmp_path / "adapter" / "adapter_config.json"
    settings = json.loads(config.read_text(encoding="utf-8")) | {"lora_dropout": 0.5}
    config.write_text(json.dumps(settings), encoding="utf-8")
    own = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(tiny_model_folder),
        tmp_path / "adapter",
        is_trainable=True,
    ).train()
    before = {name: value.clone() for name, value in own.state_dict().items()}
    trained = [parameter.requires_grad for parameter in own.parameters()]
    mine = fw.load_model(own, tokenizer=AutoTokenizer.from_pretrained(tiny_model_folder))
    assert mine.fingerprint == by_path.fingerprint
    publics, tables = [], []
    for model in (mine, by_path):
        publics.append(fw.measure_public(model, anchors, columns=COLUMNS, overrides=SHORT))
        tables.append(fw.measure(model, samples, like=publics[-1]))
    assert equal(*tables)
    assert equal(publics[0].tables[0], publics[1].tables[0])
    assert all(torch.equal(before[name], value) for name, value in own.state_dict().items())
    assert own.training
    assert all(module.training for module in own.modules())
    assert [parameter.requires_grad for parameter in own.parameters()] == trained
    assert all(parameter.grad is None for parameter in own.parameters())


def test_a_row_that_the_template_refuses_costs_itself_alone(
    tiny_model_folder, files, tmp_path, caplog
):
    """Law: it is left out with a reason and told with its row; so is a control token, if asked."""
    model = tmp_path / "model"
    shutil.copytree(tiny_model_folder, model)
    (model / "chat_template.jinja").write_text(
        "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system') }}"
        "{% endif %}<{{ m.role[0] }}>{{ m.content }}</s>{% endfor %}"
        "{% if add_generation_prompt %}<a>{% endif %}"
    )

    def chat(row, *before):
        turns = [{"role": "user", "content": row["prompt"]}]
        turns.append({"role": "assistant", "content": row["response"]})
        return json.dumps({"messages": [*before, *turns]})

    read = {
        name: [json.loads(line) for line in (files / f"{name}.jsonl").read_text().splitlines()]
        for name in ("anchors", "data")
    }
    read["data"][1]["prompt"] += " </s><a>yes"
    lines = [chat(row) for row in read["data"]]
    lines[3] = chat(read["data"][3], {"role": "system", "content": "Be brief."})
    for name, rows in (("data", lines), ("anchors", map(chat, read["anchors"]))):
        (tmp_path / f"{name}.jsonl").write_text("\n".join(rows))
    out = tmp_path / "scores.parquet"
    fw.score_silo(
        tmp_path / "data.jsonl", tmp_path / "anchors.jsonl", model, out=out,
        overrides=[*SHORT, "run.threads=1", "sites.0.gate.control_tokens=drop"],
    )  # fmt: skip
    rows = pq.read_table(out).to_pylist()
    assert [i for i, row in enumerate(rows) if row["score"] is None] == [1, 3]
    assert rows[1]["reason"] == "spells the tokenizer's control token '</s>'"
    assert rows[3]["reason"] == "refused by the chat template"
    assert "refuses 1 of 11 samples, which are left out (rows of" in caplog.text
    assert f"{tmp_path / 'data.jsonl'}: 4)" in caplog.text
    assert "1 of 12 samples spell a control token" in caplog.text


def test_steps_in_python_give_what_score_silo_gives(tiny_model_folder, files, opened, tmp_path):
    """Signals, scores and threshold of a federation of one member, bit for bit."""
    threads = torch.get_num_threads()
    try:
        out = tmp_path / "scores.parquet"
        found = fw.score_silo(
            files / "data.jsonl", files / "anchors.jsonl", tiny_model_folder,
            out=out, kept=tmp_path / "kept.jsonl", overrides=[*SHORT, "run.threads=1"],
        )  # fmt: skip
        anchors, samples = opened
        model = fw.load_model(tiny_model_folder)
        scorer = fw.build("scorer", "calibrated")
        public = fw.measure_public(model, anchors, columns=scorer.columns, overrides=SHORT)
        table = fw.measure(model, samples, like=public)
    finally:
        torch.set_num_threads(threads)
    fitted = scorer.fit(public.rows)
    scores = scorer.score((table,), fitted)
    written = pq.read_table(out)
    for name, values in table.flat_columns().items():
        if name not in {"id", "domain", "status"}:
            assert np.array_equal(written[f"{name}@0"].to_numpy(), values), name
    assert np.array_equal(written["score"].to_numpy(), scores)
    summary = fw.summarise(scores, fw.edges(fitted.public_scores, unit=scorer.unit))
    rule = fw.build("threshold", "target_recall")
    decision = rule({"silo": summary}, public.rows.scored(fitted.public_scores))
    threshold = decision.value if math.isfinite(decision.value) else None
    assert threshold == found.threshold
    selection = fw.select(table, scores, decision.value)
    assert written["kept"].to_pylist() == list(selection.kept)
    assert found.kept == selection.count == len((tmp_path / "kept.jsonl").read_text().splitlines())


def test_measure_refuses_a_model_at_another_adapter_or_base(tiny_model_folder, opened):
    """Numbers measured at different weights do not compare."""
    anchors, samples = opened
    model = fw.load_model(tiny_model_folder, rank=4)
    public = fw.measure_public(model, anchors, columns="loss", overrides=SHORT)
    warmed(model)
    with pytest.raises(fw.errors.ModelError, match="expected the adapter that the public anchors"):
        fw.measure(model, samples, like=public)
    half = fw.load_model(tiny_model_folder, rank=4, dtype="bfloat16")
    with pytest.raises(fw.errors.ModelError, match="expected the base that the public anchors"):
        fw.measure(half, samples, like=public)


def test_gradient_columns_need_a_trained_adapter(tiny_model_folder, opened):
    """With B = 0 the gradient of A is zero; the error says to warm up."""
    model = fw.load_model(tiny_model_folder)
    with pytest.raises(fw.errors.ModelError, match="B = 0 in every layer"):
        fw.measure_public(model, opened[0], columns=("loss", "dot"), overrides=SHORT)


def test_second_checkpoint_joins_the_first(tiny_model_folder, opened):
    """Rows of both checkpoints stand in one trajectory; other anchors are refused."""
    anchors, samples = opened
    model = fw.load_model(tiny_model_folder, rank=4)
    start = fw.measure_public(model, anchors, columns=(), overrides=SHORT)
    warmed(model)
    less = fw.build("scorer", "less")
    public = fw.measure_public(
        model, anchors, columns=less.columns, after=start, learning_rate=1e-3
    )
    table = fw.measure(model, samples, like=public)
    assert [one.checkpoint for one in public.rows.trajectory] == [0, 1]
    assert (table.checkpoint, table.learning_rate) == (1, 1e-3)
    assert public.config.model.max_length == 96
    assert repr(public).startswith("PublicMeasurement(PublicRows(60 rows, 12 clean and 48 corrupt")
    scores = less.score((table, table), less.fit(public.rows))
    assert np.isfinite(scores).all()
    with pytest.raises(fw.errors.DataError, match="measure both checkpoints alike"):
        fw.measure_public(model, anchors, columns="loss", after=start, overrides=("run.seed=1",))


def test_public_rows_leave_out_what_one_checkpoint_could_not_measure(tiny_model_folder, opened):
    """A row without a target at a checkpoint is in no table of ``rows``."""
    model = fw.load_model(tiny_model_folder)
    public = fw.measure_public(model, opened[0], columns="loss", overrides=SHORT)
    public.tables[0].status[3] = 1
    rows = public.rows
    assert len(rows.kinds) == len(public.kinds) - 1
    assert public.tables[0].ids[3] not in rows.trajectory[0].ids or public.tables[0].ids.count(
        public.tables[0].ids[3]
    ) > 1  # fmt: skip


def test_open_samples_guesses_columns_or_takes_them(files, tmp_path):
    """Usual names are found, a named column wins, and "" is no domain."""
    samples = fw.open_samples(files / "data.jsonl", labels=("truth",))
    assert {sample.domain for sample in samples} == {"sums", "words"}
    assert samples[0].labels == {"truth": "swap"}
    assert repr(samples) == f"Samples(12 samples of {files / 'data.jsonl'})"
    assert {s.domain for s in fw.open_samples(files / "data.jsonl", domain="")} == {""}
    path = tmp_path / "own.jsonl"
    path.write_text(json.dumps({"ask": "a", "tell": "b", "topic": "c"}) + "\n", encoding="utf-8")
    (sample,) = fw.open_samples(path, prompt="ask", response="tell", domain="topic")
    assert (sample.prompt, sample.response, sample.domain) == ("a", "b", "c")
    with pytest.raises(fw.errors.DataError, match="rename two"):
        fw.open_samples(path)
    (sample,) = fw.open_samples(path, prompt_template="{topic}: {ask}", response="tell")
    assert sample.prompt == "c: a"


def test_tokenizer_goes_with_a_model_of_ones_own(tiny_model_folder):
    """A model without a tokenizer, or a name with one, is refused with the cure."""
    base = AutoModelForCausalLM.from_pretrained(tiny_model_folder)
    with pytest.raises(fw.errors.ModelError, match="give the model's tokenizer"):
        fw.load_model(base)
    with pytest.raises(fw.errors.ModelError, match="a name brings its own"):
        fw.load_model(tiny_model_folder, tokenizer=object())


def test_select_wants_a_score_for_each_sample(tiny_model_folder, opened):
    """Scores of another table are refused; a sample without a target keeps its reason."""
    anchors, _ = opened
    model = fw.load_model(tiny_model_folder)
    public = fw.measure_public(model, anchors, columns="loss", overrides=SHORT)
    empty = fw.Sample(id="0", prompt="Why?", response="")
    table = fw.measure(model, [empty, anchors[0]], like=public)
    scores = np.array([np.nan, 0.5])
    assert fw.select(table, scores, 0.5).reasons == ("no target token", "")
    with pytest.raises(fw.errors.DataError, match="a score for each of 2 samples, got 1"):
        fw.select(table, scores[:1], 0.5)


def test_drawing_shows_the_threshold_where_it_is_finite():
    """A dashed line at the threshold, none at −inf; NaN is refused; a notebook gets SVG."""
    summary = fw.ScoreSummary(edges=np.array([0.0, 0.5, 1.0]), counts=np.array([0.0, 3, 5, 1]))
    figure = fw.draw(summary, 0.25)
    (axes,) = figure.axes
    assert [list(line.get_xdata()) for line in axes.lines] == [[0.25, 0.25]]
    assert figure._repr_svg_().startswith("<svg")
    heights = axes.patches[0].get_data().values
    assert heights.sum() == pytest.approx(summary.total)
    assert not fw.draw(summary, -math.inf).axes[0].lines
    assert not fw.draw(summary).axes[0].lines
    with pytest.raises(fw.errors.NonFiniteError, match="got NaN"):
        fw.draw(summary, math.nan)
