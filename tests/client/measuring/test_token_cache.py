"""Laws of tokens on the disk: the tokens of the texts as they are now, whole or made anew."""

import logging
import stat
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from warmed import OPTIONS, some, table_of, warmed

from fedwinnow.client.measuring import pass_options, token_cache
from fedwinnow.client.measuring.pass_options import PassOptions
from fedwinnow.client.measuring.token_cache import cached_encodings, remove_tokens
from fedwinnow.client.phases.close import close
from fedwinnow.client.runs.run_files import RunFiles
from fedwinnow.curation.datatypes import Sample, Status, Turn
from fedwinnow.curation.errors import ModelError
from fedwinnow.curation.model.pretrained import encode
from fedwinnow.curation.protocol.header import Header
from fedwinnow.curation.protocol.requests import CloseRequest
from fedwinnow.curation.tokens import tokenization
from fedwinnow.curation.tokens.tokenization import encode_sample, encode_samples

TEXTS = st.text(max_size=20)
SAMPLES = st.lists(
    st.tuples(TEXTS, TEXTS, st.lists(st.tuples(TEXTS, TEXTS), max_size=2)), max_size=7
)
"""Prompt, response and earlier turns of each sample."""
QUIET = settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])


def made(texts):
    """Samples of texts."""
    return [
        Sample(
            id="s",
            prompt=prompt,
            response=response,
            history=tuple(t for q, a in turns for t in (Turn("user", q), Turn("assistant", a))),
        )
        for prompt, response, turns in texts
    ]


def same(found, expected):
    """Whether two encodings are equal, number format included."""
    return (
        found.tokens.tolist() == expected.tokens.tolist()
        and found.tokens.dtype == expected.tokens.dtype
        and found.response_start == expected.response_start
        and found.body_end == expected.body_end
        and found.earlier == expected.earlier
        and found.refusal == expected.refusal
    )


@pytest.fixture
def small_blocks(monkeypatch):
    """Blocks of three samples."""
    monkeypatch.setattr(tokenization, "BLOCK", 3)
    monkeypatch.setattr(token_cache, "BLOCK", 3)


@QUIET
@given(texts=SAMPLES, length=st.integers(8, 60), system=TEXTS, template=st.booleans())
@pytest.mark.usefixtures("small_blocks")
def test_samples_encoded_together_are_encoded_as_one_by_one(
    tiny_model, texts, length, system, template
):
    """Oracle: encode_sample, whatever the texts, turns, cuts and template."""
    samples, tokenizer = made(texts), tiny_model.tokenizer
    kept = tokenizer.chat_template
    tokenizer.chat_template = kept if template else None
    try:
        options = {"max_length": length, "system_prompt": system}
        found = list(encode_samples(tokenizer, iter(samples), **options))
        expected = [encode_sample(tokenizer, sample, **options) for sample in samples]
    finally:
        tokenizer.chat_template = kept
    assert len(found) == len(expected)
    assert all(same(one, other) for one, other in zip(found, expected, strict=True))


@QUIET
@given(texts=SAMPLES, length=st.integers(8, 60), system=TEXTS)
@pytest.mark.usefixtures("small_blocks")
def test_tokens_from_the_disk_are_those_of_the_texts(
    tiny_model, tmp_path_factory, texts, length, system
):
    """Made, kept and read again: each is what encode_sample gives."""
    samples, folder = made(texts), tmp_path_factory.mktemp("tokens")
    options = PassOptions(batch_tokens=8, max_length=length, system_prompt=system, tokens=folder)
    expected = [
        encode(tiny_model, sample, max_length=length, system_prompt=system) for sample in samples
    ]
    for found in (cached_encodings(tiny_model, samples, options) for _ in range(2)):
        assert len(found) == len(expected)
        assert all(same(one, other) for one, other in zip(found, expected, strict=True))


@pytest.fixture
def counted(monkeypatch):
    """Sizes of the blocks that are tokenised."""
    sizes = []
    plain = pass_options.encode_all

    def count(loaded, block, **options):
        sizes.append(len(block))
        return plain(loaded, block, **options)

    monkeypatch.setattr(pass_options, "encode_all", count)
    return sizes


@pytest.mark.usefixtures("small_blocks")
def test_tokens_are_made_once_and_again_for_whatever_changes(tiny_model, tmp_path, counted):
    """Same blocks: nothing is tokenised; a text, length, prompt or template: only what it is in."""
    samples, options = some(7, "s"), PassOptions(batch_tokens=8, max_length=60, tokens=tmp_path)
    cached_encodings(tiny_model, samples, options)
    assert counted == [3, 3, 1]
    cached_encodings(tiny_model, samples, options)
    cached_encodings(tiny_model, samples[3:6], options)
    assert counted == [3, 3, 1]
    changed = [*samples[:4], replace(samples[4], response="other"), *samples[5:]]
    cached_encodings(tiny_model, changed, options)
    assert counted == [3, 3, 1, 3]
    for other in (replace(options, max_length=61), replace(options, system_prompt="x")):
        counted.clear()
        cached_encodings(tiny_model, samples, other)
        assert counted == [3, 3, 1]
    counted.clear()
    cached_encodings(tiny_model, samples, replace(options, tokens=None))
    assert counted == [3, 3, 1]
    for name in ("vocabulary", "chat", "end_tokens"):
        tiny_model.__dict__.pop(name, None)
    kept = tiny_model.tokenizer.chat_template
    tiny_model.tokenizer.chat_template = kept.replace("</s>", "</s></s>")
    counted.clear()
    found = cached_encodings(tiny_model, samples, options)
    assert counted == [3, 3, 1]
    assert found[0].tokens.tolist() == encode(tiny_model, samples[0], max_length=60).tokens.tolist()


def test_tokens_of_a_template_that_tells_the_date_are_of_today(tiny_model, tmp_path, counted):
    """A prompt that is rendered otherwise now has another file, though the template is the same."""
    tiny_model.tokenizer.chat_template = (
        "{{ today() }}{% for message in messages %}{{ message['content'] }}</s>{% endfor %}"
    )
    options = PassOptions(batch_tokens=8, max_length=60, tokens=tmp_path)
    plain, day = tiny_model.tokenizer.apply_chat_template, ["monday"]

    def rendered(turns, **options):
        template = tiny_model.tokenizer.chat_template.replace("{{ today() }}", day[0])
        return plain(turns, chat_template=template, **options)

    tiny_model.tokenizer.apply_chat_template = rendered
    monday = cached_encodings(tiny_model, some(2, "s"), options)
    assert same(cached_encodings(tiny_model, some(2, "s"), options)[0], monday[0])
    assert counted == [2]
    day[0] = "tuesday"
    assert not same(cached_encodings(tiny_model, some(2, "s"), options)[0], monday[0])
    assert counted == [2, 2]


@pytest.mark.parametrize("cut", [0, 7, 31, 40, -4, "flip", "more"])
def test_tokens_that_are_not_whole_are_made_anew(tiny_model, tmp_path, caplog, counted, cut):
    """A file that was cut off or changed is named in a warning, and written again."""
    samples, options = some(3, "s"), PassOptions(batch_tokens=8, max_length=60, tokens=tmp_path)
    expected = cached_encodings(tiny_model, samples, options)
    (file,) = tmp_path.iterdir()
    whole = file.read_bytes()
    if cut == "flip":
        file.write_bytes(whole[:-3] + bytes([whole[-3] ^ 1]) + whole[-2:])
    elif cut == "more":
        file.write_bytes(whole + b"\0\0\0\0")
    else:
        file.write_bytes(whole[:cut])
    with caplog.at_level(logging.WARNING):
        found = cached_encodings(tiny_model, samples, options)
    assert counted == [3, 3]
    assert file.name in caplog.text
    assert all(same(one, other) for one, other in zip(found, expected, strict=True))
    assert file.read_bytes() == whole


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_tokens_of_a_changed_file_are_those_of_the_texts_or_none(
    tiny_model, tmp_path_factory, data
):
    """Whatever byte of a file is changed, wrong tokens never come out of it."""
    folder = tmp_path_factory.getbasetemp()
    expected = [encode(tiny_model, sample, max_length=60) for sample in some(3, "s")]
    raw = bytearray(token_cache._bytes(expected))
    raw[data.draw(st.integers(0, len(raw) - 1))] ^= data.draw(st.integers(1, 255))
    (folder / "x.tokens").write_bytes(raw)
    found = token_cache._read(folder / "x.tokens", 3)
    assert found is None or all(map(same, found, expected))


def test_tokens_are_for_the_owner_alone_and_go(tiny_model, tmp_path):
    """Folder 0700, files 0600, nothing half-written; forgetting removes them, twice as well."""
    folder = RunFiles(tmp_path / "run").tokens
    options = PassOptions(batch_tokens=8, max_length=60, tokens=folder)
    cached_encodings(tiny_model, some(3, "s"), options)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert [stat.S_IMODE(file.stat().st_mode) for file in folder.iterdir()] == [0o600]
    assert [file.suffix for file in folder.iterdir()] == [".tokens"]
    remove_tokens(folder)
    assert not folder.exists()
    remove_tokens(folder)


def test_tokens_go_when_the_run_closes(tmp_path):
    """The close phase leaves tables and no tokens."""
    tokens = RunFiles(tmp_path).tokens
    tokens.mkdir()
    (tokens / "x.tokens").write_bytes(b"private")
    (tmp_path / "scores.parquet").write_bytes(b"scores")
    header = Header(run="r", phase="close")
    close(SimpleNamespace(files=RunFiles(tmp_path), site="a"), CloseRequest(header=header))
    assert [file.name for file in tmp_path.iterdir()] == ["scores.parquet"]


def test_tokens_that_cannot_be_removed_are_told_of(tmp_path, monkeypatch, caplog):
    """An operator hears that private tokens are left, and where."""

    def refuse(_path):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(token_cache.shutil, "rmtree", refuse)
    with caplog.at_level(logging.WARNING):
        remove_tokens(RunFiles(tmp_path).tokens)
    assert "Permission denied" in caplog.text
    assert str(RunFiles(tmp_path).tokens) in caplog.text


def test_tokens_that_no_template_takes_leave_no_file(tiny_model, tmp_path):
    """Edge: a template that renders nothing is an error, and nothing is kept of its block."""
    tiny_model.tokenizer.chat_template = "{{ raise_exception('no') }}"
    options = PassOptions(batch_tokens=8, max_length=60, tokens=tmp_path)
    with pytest.raises(ModelError, match="chat template does not write a plain exchange"):
        cached_encodings(tiny_model, some(3, "s"), options)
    assert list(tmp_path.iterdir()) == []


def test_refusals_and_earlier_answers_come_back_from_the_disk(tiny_model, tmp_path, caplog):
    """Equivalence: what is read again is what was made, refused rows and their reason too."""
    tiny_model.tokenizer.chat_template = (
        "{% for m in messages %}{% if m.content == 'bad' %}"
        "{{ raise_exception('no bad') }}{% endif %}"
        "<{{ m.role[0] }}>{{ m.content }}</s>{% endfor %}"
    )
    tiny_model.__dict__.pop("chat", None)
    history = (Turn("user", "q"), Turn("assistant", "a"))
    samples = [
        Sample(id="s", prompt=prompt, response="r", history=history, train_on="all")
        for prompt in ("good", "bad", "good")
    ]
    options = PassOptions(batch_tokens=8, max_length=60, tokens=tmp_path)
    made = cached_encodings(tiny_model, samples, options)
    assert "refuses 1 of 3 samples" in caplog.text
    assert "no bad" in caplog.text
    assert [len(one.earlier) for one in made] == [1, 0, 1]
    caplog.clear()
    assert all(map(same, cached_encodings(tiny_model, samples, options), made))
    assert "refuses 1 of 3 samples" in caplog.text
    table = table_of(tiny_model, samples, None, {"loss"}, options)
    assert table.status.tolist() == [Status.OK, Status.REFUSED, Status.OK]
    assert np.isnan(table.columns["loss"]).tolist() == [False, True, False]


def test_tables_are_the_same_with_tokens_from_the_disk(tiny_model, tmp_path):
    """Measuring gives the same bits with no folder, with an empty one and with a full one."""
    warmed(tiny_model)
    samples = some(5, "s")
    plain = table_of(tiny_model, samples, None, {"loss", "length"})
    for _ in range(2):
        found = table_of(
            tiny_model, samples, None, {"loss", "length"}, replace(OPTIONS, tokens=tmp_path)
        )
        for name, values in plain.columns.items():
            assert np.array_equal(found.columns[name], values), name
    assert len(list(tmp_path.iterdir())) == 1
