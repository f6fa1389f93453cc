"""Laws of run.toml and site.toml: paths lie beside the file, and what cannot work is said first."""

import re
from pathlib import Path

import pytest

from fedwinnow.curation.config.load_files import load_run, load_site
from fedwinnow.curation.errors import ConfigError
from fedwinnow.curation.protocol.keys import PrivateKey

KEYS = [PrivateKey.new().public.text for _ in range(3)]


def run_file(folder: Path, members) -> Path:
    """A run.toml with a key file's name and members."""
    lines = ["[coordinator]", 'key = "own.key"']
    for name, key in members:
        lines += ["[[members]]", f'name = "{name}"', f'key = "{key}"']
    path = folder / "run.toml"
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def site_file(folder: Path, text: str = "") -> Path:
    """A site.toml with data and anchors beside it."""
    for name in ("mine.jsonl", "anchors.jsonl"):
        (folder / name).touch()
    path = folder / "site.toml"
    path.write_text(
        f'{text}\n[site]\nname = "law"\ndata = "mine.jsonl"\n[anchors]\npath = "anchors.jsonl"\n',
        encoding="utf-8",
    )
    return path


def test_load_run_finds_output_and_key_beside_the_file(tmp_path, monkeypatch):
    """Wherever the command is typed: paths are the file's neighbours; overrides win."""
    members = tuple(zip(("a", "b", "c"), KEYS, strict=True))
    path = run_file(tmp_path, members)
    monkeypatch.chdir("/")
    config = load_run(path, ["run.minimum_sites=2"])
    assert config.coordinator.key == str(tmp_path / "own.key")
    assert config.run.output == str(tmp_path / "runs")
    assert config.run.minimum_sites == 2
    assert tuple((member.name, member.key) for member in config.members) == members


@pytest.mark.parametrize(
    ("members", "override", "said"),
    [
        ([("a", KEYS[0]), ("b", KEYS[0])], "", "a and b have the same key"),
        ([("a", KEYS[0]), ("a", KEYS[1])], "", "every site named once"),
        ([("a", KEYS[0]), ("b", KEYS[1][:-9])], "", "members.key of b"),
        ([("a", KEYS[0]), ("b", "")], "", "members.key of b"),
        ([], "", "[[members]] is missing"),
        ([("a", KEYS[0])], "run.minimum_sites=2", "run.minimum_sites = 2"),
        ([("a", KEYS[0])], "quorum.score=2", "quorum.score = 2"),
        ([("a", KEYS[0])], "study.arms=['curated', 'random']", "simulated only"),
        ([("a", KEYS[0])], "coordinator.key=", "coordinator.key is missing"),
        ([("a", KEYS[0])], "coordinator.tries=3", "unknown key coordinator.tries"),
    ],
)
def test_load_run_refuses_what_no_site_could_answer(tmp_path, members, override, said):
    """Keys, quorum and arms are judged before anyone is waited for; the file is named."""
    path = run_file(tmp_path, members)
    with pytest.raises(ConfigError, match=re.escape(said)) as raised:
        load_run(path, [override] if override else [])
    assert str(path) in str(raised.value)


def test_load_run_refuses_simulated_sites(tmp_path):
    """A scenario is no deployed run."""
    path = tmp_path / "run.toml"
    path.write_text('[[sites]]\nname = "a"\ndata = "d.jsonl"\n', encoding="utf-8")
    with pytest.raises(ConfigError, match="are simulated"):
        load_run(path)


def test_load_site_finds_everything_beside_the_file(tmp_path, monkeypatch):
    """Data, anchors, socket, token, key and work folder; a hub name stays one."""
    path = site_file(tmp_path)
    monkeypatch.chdir("/")
    config = load_site(path, ["model.name=org/model"])
    assert config.site.data == str(tmp_path / "mine.jsonl")
    assert config.anchors.path == str(tmp_path / "anchors.jsonl")
    assert config.agent.socket == str(tmp_path / "agent" / "agent.sock")
    assert config.agent.token == str(tmp_path / "agent" / "token")
    assert config.agent.key == str(tmp_path / "agent.key")
    assert config.work == str(tmp_path / "site-data")
    assert config.model.name == "org/model"


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("simulation=true", "its policy would not hold"),
        ("policy.phases=['training']", "policy.phases = 'training' is out of range"),
        ("agent.key=", "agent.key = ''"),
        ("work=", "work = ''"),
        ("anchors.path=", "anchors.path = ''"),
        ("policy.max_rnak=3", "unknown key policy.max_rnak"),
    ],
)
def test_load_site_refuses_what_would_weaken_or_break_a_silo(tmp_path, override, said):
    """A silo's own word cannot switch its policy off or misspell it; the file is named."""
    path = site_file(tmp_path)
    with pytest.raises(ConfigError, match=re.escape(said)) as raised:
        load_site(path, [override])
    assert str(path) in str(raised.value)
