import importlib.util
import json

import pytest

from fedwinnow.curation.errors import DataError
from fedwinnow.simulations.datasets import demo_texts, passages
from fedwinnow.simulations.datasets.demo_texts import build_demo_data, data_root, draw_pairs_of_text
from fedwinnow.simulations.datasets.passages import sentences, stems


def words(prompt, response):
    """Tokens by a crude count: 1.4 a word, and 17 of the template."""
    return 17 + int(1.4 * len(f"{prompt} {response}".split()))


def test_sentences_keep_abbreviations_whole():
    """Law: a sentence ends at its full stop, not at U.S., v. or an initial."""
    text = "The court ruled in Roe v. Wade. John F. Smith of the U.S. Army agreed. It ended."
    assert sentences(text) == [
        "The court ruled in Roe v. Wade.",
        "John F. Smith of the U.S. Army agreed.",
        "It ended.",
    ]


def test_stems_are_longer_words():
    """Law: words under four letters are left out; forms of a word share a stem."""
    assert stems("Why are we investing?") == {"invest"} == stems("An investment")


def test_data_root_names_what_to_install(monkeypatch):
    """Edge: without the wheel the message says what to install."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(DataError, match="pip install"):
        data_root()


def test_draw_says_how_many_pairs_there_are(tmp_path, monkeypatch):
    """Edge: too few fitting pairs is an error with both numbers; equal questions count once."""
    monkeypatch.setattr(passages, "SHARED", 0.5)
    folder = tmp_path / "Fiqa"
    folder.mkdir()
    answer = "A mortgage costs interest " + "and a lot of patience from you " * 3 + "today."
    rows = [
        {"question": "How does a mortgage work for me?", "answer": answer},
        {"question": "How does a mortgage work, for me?", "answer": answer},
        {"question": "Why are dividends paid out by firms?", "answer": "Because."},
        {"question": "Where do I buy bonds as a student?", "answer": "At a bank."},
    ]
    (folder / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(DataError, match=r"2 fitting pairs are needed and .* holds 1"):
        draw_pairs_of_text(tmp_path, "finance", size=2, seed=0, count=words)
    [only] = draw_pairs_of_text(tmp_path, "finance", size=1, seed=0, count=words)
    assert only.response == answer
    assert only.labels["corruption"] == "clean"


def test_broken_data_file_is_named(tmp_path):
    """Edge: a missing data file is an error that names it."""
    with pytest.raises(DataError, match=r"Fiqa.*test\.jsonl"):
        draw_pairs_of_text(tmp_path, "finance", size=1, seed=0, count=words)


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The demo's files of one seed, and their folder."""
    folder = tmp_path_factory.mktemp("demo")
    return build_demo_data(folder, seed=1, count=words), folder


def read(path):
    """Rows of a JSONL file."""
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.real
def test_demo_data_has_the_planted_shares(built):
    """Law: 48 samples a silo, 60, 10 and 40 % corrupted, every kind as often as the others ± 1."""
    data, _ = built
    for silo in demo_texts.DEMO:
        rows = read(data.silos[silo.name])
        kinds = [row["corruption"] for row in rows]
        assert len(rows) == silo.samples == 48
        assert len(rows) - kinds.count("clean") == round(silo.bad * silo.samples)
        counts = [kinds.count(kind) for kind in demo_texts.KINDS]
        assert max(counts) - min(counts) <= 1
        assert {row["domain"] for row in rows} == {silo.domain}


@pytest.mark.real
def test_demo_anchors_are_clean_and_apart(built):
    """Law: anchors are clean, of all domains alike, and share no prompt or answer with a silo."""
    data, _ = built
    anchors = read(data.anchors)
    private = [row for path in data.silos.values() for row in read(path)]
    assert {row["corruption"] for row in anchors} == {"clean"}
    for silo in demo_texts.DEMO:
        assert sum(row["domain"] == silo.domain for row in anchors) == demo_texts.ANCHORS
    for field in ("prompt", "response"):
        assert not {row[field] for row in anchors} & {row[field] for row in private}
    assert len({row["prompt"] for row in private + anchors}) == len(private + anchors)


@pytest.mark.real
def test_demo_data_fits_and_repeats(built, tmp_path):
    """Law: no sample is longer than the limit; equal seeds write equal bytes, others do not."""
    data, folder = built
    for path in (data.anchors, *data.silos.values()):
        for row in read(path):
            assert words(row["prompt"], row["response"]) <= demo_texts.MAX_TOKENS
            if row["corruption"] == "clean":
                assert len(row["response"].split()) >= passages.WORDS[0]
    build_demo_data(tmp_path / "again", seed=1, count=words)
    build_demo_data(tmp_path / "other", seed=2, count=words)
    for path in sorted(folder.iterdir()):
        assert path.read_bytes() == (tmp_path / "again" / path.name).read_bytes()
        assert path.read_bytes() != (tmp_path / "other" / path.name).read_bytes()
