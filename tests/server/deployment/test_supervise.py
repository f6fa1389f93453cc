"""Laws of `fedwinnow run`: one supervisor, true ends, no vain repetition; Flower is played."""

import itertools
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from fedwinnow.curation import errors
from fedwinnow.curation.config.coordinator import CoordinatorSection, MemberSection
from fedwinnow.curation.config.identity import run_id
from fedwinnow.curation.config.run import RunConfig
from fedwinnow.curation.config.scoring import RunSection
from fedwinnow.curation.protocol.envelope import PrivateKey, PublicKey
from fedwinnow.curation.protocol.phases import Phase
from fedwinnow.server.deployment import flower_programs
from fedwinnow.server.deployment import supervise as module
from fedwinnow.server.deployment.flower_programs import UNKNOWN, Connection
from fedwinnow.server.deployment.supervise import supervise
from fedwinnow.server.run.run_folder import RunFolder
from fedwinnow.server.run.status import status_file
from fedwinnow.server.state import RunState

DOWN = errors.TransportError("the SuperLink does not answer")


@pytest.fixture
def config(tmp_path, monkeypatch) -> RunConfig:
    """A deployed run of two members; nothing waits."""
    PrivateKey.new().save(tmp_path / "own.key")
    monkeypatch.setattr(module, "POLL", 0.0)
    monkeypatch.setattr(module, "PATIENCE", 0.0)
    members = (MemberSection(name=n, key=PrivateKey.new().public.text) for n in ("law", "med"))
    return RunConfig(
        run=RunSection(name="deployed", output=str(tmp_path / "runs"), minimum_sites=2),
        members=tuple(members),
        coordinator=CoordinatorSection(key=str(tmp_path / "own.key"), attempts=3, pause=0.0),
    )


class Flower:
    """Plays Flower's command line: each run ends as the next act says."""

    def __init__(self, config: RunConfig, *acts) -> None:
        self.config, self.acts, self.calls = config, list(acts), []
        self.given: list[str] = []

    def answer(self, *arguments: str) -> dict:
        """What Flower prints as JSON."""
        self.calls.append(arguments[0])
        if arguments[0] == "run":
            self.given.append(Path(arguments[3]).read_text(encoding="utf-8"))
            if isinstance(self.acts[0], errors.TransportError):
                raise self.acts.pop(0)
            return {"success": True, "run-id": "77"}
        if arguments[0] == "stop":
            return {"success": True}
        act = self.acts.pop(0)
        if isinstance(act, BaseException):
            raise act
        details = act(self.config) or ""
        return {"runs": [{"status": "finished:failed" if details else "finished:completed",
                          "status-details": details}]}  # fmt: skip


def folder_of(config: RunConfig) -> Path:
    """The run folder."""
    return Path(config.run.output) / config.run.name


def finishes(config: RunConfig) -> str:
    """The run reaches its end."""
    store = RunFolder(folder=folder_of(config))
    state = store.begin(config, run_id(config))
    store.commit(replace(state, phase=Phase.DONE))
    for name in ("record.json", "summary.json", "report.html"):
        (store.folder / name).write_text("{}", encoding="utf-8")
    return ""


def dies(config: RunConfig) -> str:
    """The ServerApp dies after its first commit."""
    store = RunFolder(folder=folder_of(config))
    store.commit(store.begin(config, run_id(config)))
    return "ServerApp heartbeat lost"


def done_but_not_written(config: RunConfig) -> str:
    """Killed between the last commit and the files."""
    store = RunFolder(folder=folder_of(config))
    store.commit(replace(store.begin(config, run_id(config)), phase=Phase.DONE))
    return "killed"


def refused(config: RunConfig, **missing: str) -> str:
    """Sites say no at join, and too few are left."""
    tree = {"run": "r", "phase": "join", "round": 0, "arm": "", "missing": missing,
            "stopped": "ProtocolError: 0 of 2 sites answered"}  # fmt: skip
    status_file(folder_of(config)).parent.mkdir(parents=True, exist_ok=True)
    status_file(folder_of(config)).write_text(json.dumps(tree), encoding="utf-8")
    return "ProtocolError: 0 of 2 sites answered"


def silent(config: RunConfig) -> str:  # noqa: ARG001 - an act's shape
    """The SuperLink does not answer any more."""
    raise DOWN


def play(monkeypatch, config: RunConfig, *acts) -> Flower:
    """Put a played Flower in place of the real one."""
    flower = Flower(config, *acts)
    monkeypatch.setattr(Connection, "flwr", lambda _, *words: flower.answer(*words))
    return flower


def test_supervise_submits_again_until_the_run_is_done(config, monkeypatch, tmp_path):
    """Whatever ends a Flower run: ours goes on, with resume from the second on."""
    flower = play(monkeypatch, config, DOWN, dies, finishes)
    assert supervise(tmp_path / "run.toml", config) == folder_of(config)
    assert flower.calls.count("run") == 3
    assert ["resume = true" in text for text in flower.given] == [False, True, True]
    assert all(json.dumps(str(tmp_path / "run.toml")) in text for text in flower.given)


def test_supervise_is_done_only_with_its_files(config, monkeypatch, tmp_path):
    """Killed after the last commit: submitted again for record and page; then no more."""
    flower = play(monkeypatch, config, done_but_not_written, finishes)
    supervise(tmp_path / "run.toml", config)
    assert flower.calls.count("run") == 2
    supervise(tmp_path / "run.toml", config, resume=True)
    assert flower.calls.count("run") == 2


def test_supervise_gives_up_after_its_attempts(config, monkeypatch, tmp_path):
    """Exit code 1, with the last reason and what to do; never endless."""
    flower = play(monkeypatch, config, *itertools.repeat(dies, 3))
    with pytest.raises(errors.RunError, match=r"3 attempts.*heartbeat lost.*--resume") as raised:
        supervise(tmp_path / "run.toml", config)
    assert flower.calls.count("run") == 3
    assert raised.value.exit_code == 1


def test_supervise_raises_a_wrong_input_at_once(config, monkeypatch, tmp_path):
    """Flower's words name one of our input errors first: exit code 2, no second submission."""
    flower = play(monkeypatch, config, lambda _: "ModelError: model.name: no such folder")
    with pytest.raises(errors.ModelError, match="no such folder"):
        supervise(tmp_path / "run.toml", config)
    assert flower.calls.count("run") == 1


def test_supervise_takes_a_sites_fault_for_no_input_of_the_coordinator(
    config, monkeypatch, tmp_path
):
    """A site that could not read its data is mended there: the run is submitted again."""
    text = "ProtocolError: too few sites; law refused (DataError): see the site's own log"
    flower = play(monkeypatch, config, lambda _: text, finishes)
    supervise(tmp_path / "run.toml", config)
    assert flower.calls.count("run") == 2


def test_supervise_does_not_ask_again_what_a_policy_refused(config, monkeypatch, tmp_path):
    """Where refusals alone make the quorum impossible: told with site and clause, not repeated."""
    no = "refused (policy.max_rank): policy.max_rank: this site allows at most 4"
    flower = play(monkeypatch, config, lambda c: refused(c, law=no, med="no answer within 5 s"))
    with pytest.raises(errors.RunError, match=r"law refused \(policy\.max_rank\)"):
        supervise(tmp_path / "run.toml", config)
    assert flower.calls.count("run") == 1


def test_supervise_asks_again_where_a_quorum_is_possible(config, monkeypatch, tmp_path):
    """One site's no is no end, if those who were only silent could still be enough."""
    config = replace(config, run=replace(config.run, minimum_sites=1))
    no = "refused (policy.max_rank): at most 4"
    act = lambda c: refused(c, law=no, med="no answer within 5 s")  # noqa: E731 - one act
    flower = play(monkeypatch, config, act, finishes)
    supervise(tmp_path / "run.toml", config)
    assert flower.calls.count("run") == 2


@pytest.mark.parametrize("stop", [KeyboardInterrupt(), silent])
def test_supervise_stops_the_flower_run_that_it_leaves(config, monkeypatch, tmp_path, stop):
    """Ctrl-C, or a SuperLink that is silent for too long: no run goes on unwatched."""
    flower = play(monkeypatch, config, stop, *itertools.repeat(dies, 2))
    with pytest.raises((KeyboardInterrupt, errors.RunError)):
        supervise(tmp_path / "run.toml", config)
    assert flower.calls[:3] == ["run", "list", "stop"]


def test_supervise_of_a_supervised_run_is_refused(config, monkeypatch, tmp_path):
    """Two supervisors would submit twice; the lock goes with its process."""
    flower = play(monkeypatch, config, finishes)
    RunFolder.open(config, resume=False)
    with (
        module._alone(folder_of(config)),
        pytest.raises(errors.OutputError, match="another `fedwinnow run`"),
    ):
        supervise(tmp_path / "run.toml", config)
    supervise(tmp_path / "run.toml", config)
    assert flower.calls.count("run") == 1


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"coordinator.key": "/no/such.key"}, "/no/such.key"),
        ({"merging.name": "magic"}, "merging 'magic' is unknown"),
    ],
)
def test_supervise_says_wrong_input_before_it_submits(config, monkeypatch, tmp_path, change, said):
    """Key and plug-ins are tried here: exit code 2, Flower is not asked."""
    flower = play(monkeypatch, config)
    for key, value in change.items():
        section, name = key.split(".")
        config = replace(config, **{section: replace(getattr(config, section), **{name: value})})
    with pytest.raises(errors.InputError, match=re.escape(said)):
        supervise(tmp_path / "run.toml", config)
    assert flower.calls == []


def failed(words: str) -> str:
    """How Flower's command line says no."""
    return json.dumps({"success": False, "error-message": words})


def flwr_that_says(tmp_path: Path, text: str, code: int = 0) -> str:
    """A program in place of Flower's."""
    file = tmp_path / "flwr"
    file.write_text(f"#!/bin/sh\ncat <<'END'\n{text}\nEND\nexit {code}\n", encoding="utf-8")
    file.chmod(0o755)
    return str(file)


@pytest.mark.parametrize(
    ("text", "kind", "said"),
    [
        (failed(f"'x' {UNKNOWN}"), errors.ConfigError, "coordinator.connection 'x'"),
        (failed("boom"), errors.TransportError, "boom"),
        ("no JSON", errors.TransportError, "no answer"),
    ],
)  # fmt: skip
def test_connection_says_what_flower_said(tmp_path, monkeypatch, text, kind, said):
    """An unknown connection is a wrong input; anything else is a matter of transport."""
    monkeypatch.setattr(flower_programs, "PATIENCE", 30.0)
    monkeypatch.setattr(flower_programs, "program", lambda _: flwr_that_says(tmp_path, text))
    with pytest.raises(kind, match=re.escape(said)):
        Connection("x").flwr("list")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("", None),
        ("local", None),
        ("", '[superlink]\ndefault = "local"\n[superlink.local]\naddress = ":local:"\n'),
        ("mine", '[superlink.mine]\naddress = ":local-in-memory:"\n'),
    ],
)
def test_no_superlink_of_flowers_own_is_started(tmp_path, monkeypatch, name, text):
    """Where nobody told Flower of a SuperLink, it is not called: it would start one and install."""
    monkeypatch.setenv("FLWR_HOME", str(tmp_path))
    monkeypatch.setattr(flower_programs, "program", lambda _: pytest.fail("Flower was called"))
    if text is not None:
        (tmp_path / "config.toml").write_text(text, encoding="utf-8")
    with pytest.raises(errors.ConfigError, match="scripts/connect"):
        Connection(name).flwr("run")


def test_a_superlink_of_ours_is_asked(tmp_path, monkeypatch):
    """What `scripts/connect` wrote is taken, by its name and as the default."""
    (tmp_path / "config.toml").write_text(
        '[superlink]\ndefault = "federation"\n[superlink.federation]\naddress = "127.0.0.1:8000"\n',
        encoding="utf-8",
    )
    monkeypatch.setenv("FLWR_HOME", str(tmp_path))
    monkeypatch.setattr(
        flower_programs, "program", lambda _: flwr_that_says(tmp_path, '{"success": true}')
    )
    for name in ("", "federation"):
        assert Connection(name).flwr("list") == {"success": True}


def test_members_keys_are_named_before_the_run_starts(config, monkeypatch, tmp_path, caplog):
    """The coordinator's people see the fingerprint that each silo's check printed."""
    caplog.set_level("INFO", logger=module.logger.name)
    play(monkeypatch, config, finishes)
    supervise(tmp_path / "run.toml", config)
    for member in config.members:
        mark = PublicKey.parse(member.key, "").fingerprint
        assert f"member {member.name}: key with fingerprint {mark}" in caplog.text


def test_run_state_of_the_played_ends_is_real(config):
    """What the acts above commit is a state that a store reads back."""
    RunFolder.open(config, resume=False)
    dies(config)
    state = RunFolder(folder=folder_of(config)).load()
    assert isinstance(state, RunState)
    assert state.phase == Phase.JOIN
