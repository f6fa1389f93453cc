"""Laws of `fedwinnow site` and `fedwinnow keys`: what a silo's people read before they agree."""

import html
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import pytest
from answer_envelope import answer_envelope
from toy_deployment_files import write_toy_deployment

from fedwinnow.client.agent.preflight import check_site, first_exposed
from fedwinnow.client.boundary.disclosure import describe_releases
from fedwinnow.client.boundary.guarded_site import GuardedSite
from fedwinnow.client.boundary.training_clauses import check_training
from fedwinnow.client.boundary.work_clauses import check_work
from fedwinnow.client.budget.ledger import Ledger
from fedwinnow.curation.config.load_files import load_run, load_site
from fedwinnow.curation.config.run import RunConfig
from fedwinnow.curation.config.strict_toml import canonical_json
from fedwinnow.curation.protocol.header import Header
from fedwinnow.curation.protocol.keys import PrivateKey
from fedwinnow.curation.protocol.requests import JoinRequest
from fedwinnow.server.transport.coordinator_envelopes import CoordinatorEnvelopes


@pytest.fixture(scope="module")
def deployment():
    """The toy deployment in a folder whose path is short enough for sockets."""
    folder = Path(tempfile.mkdtemp(prefix="fw-", dir="/tmp"))
    write_toy_deployment(folder, samples=6)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def site(deployment, tmp_path):
    """Options that give a test a work folder of its own, and the file."""
    return deployment / "north" / "site.toml", f"work={tmp_path / 'work'}"


def moved(path: Path, tmp_path: Path) -> Path:
    """A copy of a site.toml whose work folder is a test's own."""
    copy = tmp_path / "site.toml"
    text = path.read_text(encoding="utf-8")
    work = tmp_path / "work"
    copy.write_text(re.sub(r"(?m)^work = .*$", f'work = "{work}"', text), encoding="utf-8")
    return copy


def test_site_check_says_what_it_found_and_what_may_leave(site, fedwinnow):
    """Key, counts, hashes, every phase by name, what stays; the same words as JSON."""
    file, work = site
    code, out, err = fedwinnow("site", "check", file, "--set", work)
    assert code == 0, err
    key = PrivateKey.load(file.parent / "agent.key").public
    for words in (key.text, key.fingerprint, "samples past the gate    6", "not running"):
        assert words in out
    for phase in ("join", "probe", "warm_up", "score", "select", "train", "evaluate", "close"):
        assert f"- {phase}: " in out
    code, out, _ = fedwinnow("site", "check", file, "--json", "--no-model", "--set", work)
    found = json.loads(out)
    assert set(found) == {"facts", "may_leave", "stays", "warnings"}
    assert "base_fingerprint" not in found["facts"]
    mode = Path(found["facts"]["work"]).stat().st_mode & 0o777
    assert mode == 0o700  # it will hold scores by sample


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("policy.coordinator=", "policy.coordinator"),
        ("policy.coordinator=fedwinnow-key-1:short", "policy.coordinator"),
        ("policy.anchors_hash=0123", "policy.anchors_hash: agreed is 0123"),
        ("policy.plugins=['scorer:magic']", "scorer:calibrated"),
        ("policy.plugins=['calibrated']", "kind:name"),
        ("policy.phases=['training']", "policy.phases"),
        ("policy.max_rank=0", "policy.max_rank"),
        ("simulation=true", "simulation"),
        ("site.data=/no/such.jsonl", "/no/such.jsonl"),
        ("anchors.path=/no/such.jsonl", "/no/such.jsonl"),
        ("model.name=/no/such/model", "/no/such/model"),
        ("site.gate.shortest=100000", "none of 6 samples passes"),
        ("site.gate.personal_data=['fingers']", "gate.personal_data"),
        (f"agent.socket=/tmp/{'long' * 30}/agent.sock", "agent.socket"),
        ("agent.group=no-such-group", "groupadd no-such-group"),
        ("agent.socket=/etc/passwd", "a file that is no socket"),
    ],
)
def test_site_check_finds_what_is_wrong_before_anything_starts(site, fedwinnow, line, said):
    """One message that names the key, exit code 2, no traceback."""
    file, work = site
    words = ("--set", work, "--set", line)
    code, out, err = fedwinnow("site", "check", file, *words)
    assert (code, out) == (2, ""), err
    assert said in err
    assert "Traceback" not in err


def test_site_check_refuses_a_ledger_that_was_changed_and_its_own_key(site, fedwinnow, tmp_path):
    """Evidence is kept, not written on; the coordinator is somebody else."""
    file, work = site
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "egress.jsonl").write_text("{}\n", encoding="utf-8")
    code, _, err = fedwinnow("site", "check", file, "--no-model", "--set", work)
    assert (code, "egress.jsonl" in err) == (2, True)
    own = PrivateKey.load(file.parent / "agent.key").public.text
    words = ("--set", f"work={tmp_path / 'other'}", "--set", f"policy.coordinator={own}")
    code, _, err = fedwinnow("site", "check", file, "--no-model", *words)
    assert (code, "site's own public key" in err) == (2, True)


def test_may_leave_follows_the_policy(site):
    """What is refused is said to be refused; limits are those of the file."""
    config = load_site(site[0])
    policy = replace(config.policy, phases=("probe", "score"), smallest_group=40, summaries=2)
    told = {
        line.partition(":")[0]: line for line in describe_releases(replace(config, policy=policy))
    }
    assert "policy.phases leaves it out" in told["train"]
    assert "policy.phases leaves it out" in told["evaluate"]
    assert "2 times" in told["score"]
    assert "policy.phases leaves it out" in told["cluster"]
    for most, words in ((0, "max_clusters is 0"), (7, "at most 7 clusters")):
        open_ = replace(config, policy=replace(config.policy, max_clusters=most, smallest_group=40))
        (line,) = [line for line in describe_releases(open_) if line.startswith("cluster:")]
        assert words in line
        assert ("groups of at least 40" in line) == (most > 0)
    closed = replace(config, policy=replace(config.policy, allow_individual_updates=False))
    assert describe_releases(closed)[0].startswith("as it stands only refusals")


def test_site_disclosure_prints_and_writes_every_number(site, fedwinnow, tmp_path):
    """Law: text, JSON and page hold the same numbers; nothing is computed for them."""
    file, _ = site
    code, text, _ = fedwinnow("site", "disclosure", file, "--html", tmp_path / "page.html")
    assert code == 0
    assert "- score: histogram of scores: at most" in text
    code, out, _ = fedwinnow("site", "disclosure", file, "--json")
    numbers = json.loads(out)
    page = html.unescape((tmp_path / "page.html").read_text(encoding="utf-8"))
    plain = " ".join(text.split())
    for one in numbers:
        assert one["what"] in page
        assert one["what"] in plain
        assert one["bound"] in plain
    assert not (tmp_path / "work").exists()


def test_site_check_warns_of_what_hardly_was_meant(site, tmp_path):
    """Data that others read, single samples behind a figure, runs that would all be refused."""
    config = load_site(site[0])
    config = replace(config, work=str(tmp_path / "work"))
    loose = Path(config.site.data)
    loose.chmod(0o644)
    shut = replace(config.policy, allow_individual_updates=False, phases=("probe",))
    told = " ".join(check_site(replace(config, policy=shut), load_model=False).warnings)
    for words in ("policy.smallest_group is 1", "site.smallest_cell is 1", "anchors_hash is empty",
                  "refused at join", "leaves out evaluate"):  # fmt: skip
        assert words in told


def test_exposed_looks_at_files_and_the_folders_above(tmp_path):
    """A file is open to others only if every folder above it is; its group counts as others."""
    place = Path(tempfile.mkdtemp(prefix="fw-", dir="/tmp"))
    place.chmod(0o755)
    file = place / "data" / "mine.jsonl"
    file.parent.mkdir(mode=0o755)
    file.touch(mode=0o644)
    assert first_exposed(file, "") == first_exposed(file.parent, "") == str(file)
    file.parent.chmod(0o700)
    assert first_exposed(file, "") == first_exposed(file.parent, "") == ""
    file.parent.chmod(0o755)
    file.chmod(0o640)
    assert first_exposed(file, "") == ""
    group = next(entry.gr_name for entry in __import__("grp").getgrall()
                 if entry.gr_gid == file.stat().st_gid)  # fmt: skip
    assert first_exposed(file, group) == str(file)
    assert first_exposed(tmp_path / "org" / "name", "") == ""
    shutil.rmtree(place)


def joined(file: Path, deployment: Path) -> None:
    """One request that is answered: the ledger holds an entry."""
    config: RunConfig = load_run(deployment / "run.toml")
    boundary = GuardedSite.open(load_site(file))
    envelopes = CoordinatorEnvelopes.open(config, file.parent / "coordinator")
    header = Header(run="law-1", phase="join")
    request = JoinRequest(header=header, terms=canonical_json(config.terms()))
    answer_envelope(envelopes.envelope(request, "north"), boundary)
    boundary.ledger.close()


def test_site_egress_reads_as_words_and_shows_any_change(deployment, fedwinnow, tmp_path):
    """Empty, then one line a message with sums; --verify finds a changed byte and a lost file."""
    file = moved(deployment / "north" / "site.toml", tmp_path)
    code, _, err = fedwinnow("site", "egress", file)
    assert (code, "start the agent first" in err) == (2, True)
    Ledger.open(tmp_path / "work").close()
    assert fedwinnow("site", "egress", file)[1].startswith("0 messages left")
    joined(file, deployment)
    code, out, err = fedwinnow("site", "egress", file)
    assert code == 0, err
    assert "law-1  join" in out
    assert "1 × site card, untrained adapter" in out
    assert "charged: site card, untrained adapter\n" in out
    assert "1 messages left" in out
    assert "1 releases were charged to samples, 0 of them never released" in out
    assert PrivateKey.load(deployment / "coordinator.key").public.fingerprint in out
    assert len(json.loads(fedwinnow("site", "egress", file, "--json")[1])) == 2
    code, out, _ = fedwinnow("site", "egress", file, "--verify")
    assert (code, out.startswith("2 entries, unchanged; head ")) == (0, True)
    assert json.loads(fedwinnow("site", "egress", file, "--verify", "--json")[1])["unchanged"]
    ledger = tmp_path / "work" / "egress.jsonl"
    whole = ledger.read_bytes()
    ledger.write_bytes(whole.replace(b'"join"', b'"jain"', 1))
    code, out, err = fedwinnow("site", "egress", file, "--verify")
    assert (code, out, "line 1" in err) == (2, "", True)
    ledger.unlink()
    (tmp_path / "work" / "egress.head").unlink()
    code, _, err = fedwinnow("site", "egress", file)
    assert (code, "somebody took it away" in err) == (2, True)


@pytest.mark.flower
def test_site_serve_listens_tells_and_stops(deployment, fedwinnow, tmp_path):
    """A process of its own: status answers, SIGTERM ends it with 0, its files are its own."""
    file = moved(deployment / "north" / "site.toml", tmp_path)
    code, _, err = fedwinnow("site", "status", file)
    assert code == 1, err
    assert "start" in err
    command = [sys.executable, "-m", "fedwinnow.cli.main", "site", "serve", str(file)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline().startswith("site north listens on ")
        code, out, err = fedwinnow("site", "status", file, "--json")
        assert code == 0, err
        assert (json.loads(out)["site"], json.loads(out)["state"]) == ("north", "idle")
        assert "state        idle" in fedwinnow("site", "status", file)[1]
        assert "running, process" in str(check_site(load_site(file), load_model=False).facts)
        began = time.monotonic()
        os.kill(process.pid, signal.SIGTERM)
        assert "stopped" in process.stdout.read()
        assert process.wait(10) == 0
    assert time.monotonic() - began < 10
    for path in (tmp_path / "work").rglob("*"):
        assert path.stat().st_mode & 0o077 == 0


def test_keys_makes_once_and_never_writes_over(tmp_path, fedwinnow):
    """The public line alone on standard output; a second call reads the same key."""
    file = tmp_path / "own.key"
    code, out, err = fedwinnow("keys", file)
    key = PrivateKey.load(file)
    assert (code, out) == (0, key.public.text + "\n")
    assert key.public.fingerprint in err
    assert fedwinnow("keys", file)[1] == out
    (tmp_path / "other").write_text("mine", encoding="utf-8")
    (tmp_path / "other").chmod(0o600)
    code, out, err = fedwinnow("keys", tmp_path / "other")
    assert (code, out) == (2, "")
    assert (tmp_path / "other").read_text(encoding="utf-8") == "mine"


def test_init_writes_a_run_and_a_site_that_say_what_lacks(deployment, fedwinnow, tmp_path):
    """run.toml names its missing keys; filled in, both load."""
    data, anchors = deployment / "north.jsonl", deployment / "anchors.jsonl"
    words = ("--anchors", anchors, "--model", deployment / "model", "--out", tmp_path)
    code, out, err = fedwinnow("init", data, *words)
    assert code == 0, err
    assert str(tmp_path / "run.toml") in out
    code, _, err = fedwinnow("run", tmp_path / "run.toml")
    assert (code, "members.key of site-1" in err) == (2, True)
    text = (tmp_path / "run.toml").read_text(encoding="utf-8")
    for _ in range(3):
        text = text.replace('key = ""', f'key = "{PrivateKey.new().public.text}"', 1)
    (tmp_path / "run.toml").write_text(text, encoding="utf-8")
    config = load_run(tmp_path / "run.toml")
    assert [member.name for member in config.members] == ["site-1", "site-2", "site-3"]
    assert config.coordinator.key == str(tmp_path / "coordinator.key")
    code, _, err = fedwinnow("run", tmp_path / "run.toml")
    assert (code, "coordinator.key" in err) == (2, True)
    site = load_site(tmp_path / "site.toml")
    assert not site.policy.allow_individual_updates
    for file in ("run.toml", "site.toml"):
        lines = (tmp_path / file).read_text(encoding="utf-8").splitlines()
        given = [i for i, line in enumerate(lines) if " = " in line and line[0] != "#"]
        assert all(lines[i - 1].startswith("# ") for i in given)


def test_init_without_data_writes_a_run_alone(fedwinnow, tmp_path):
    """A coordinator has no data: run.toml is what it would be beside a site's, and nothing else."""
    code, out, err = fedwinnow("init", "--out", tmp_path, "--model", "hub/model")
    assert (code, err) == (0, "")
    assert [file.name for file in tmp_path.iterdir()] == ["run.toml"]
    assert str(tmp_path / "run.toml") in out
    before = (tmp_path / "run.toml").read_bytes()
    code, _, err = fedwinnow("init", "--out", tmp_path)
    assert (code, "already there" in err) == (2, True)
    assert (tmp_path / "run.toml").read_bytes() == before


def test_init_writes_a_run_that_its_site_does_not_refuse(deployment, fedwinnow, tmp_path):
    """Law: terms of a run.toml as written hold every clause of a site.toml as written."""
    data, anchors = deployment / "north.jsonl", deployment / "anchors.jsonl"
    code, _, err = fedwinnow("init", data, "--anchors", anchors, "--out", tmp_path)
    assert code == 0, err
    text = (tmp_path / "run.toml").read_text(encoding="utf-8")
    keys = re.sub('key = ""', lambda _: f'key = "{PrivateKey.new().public.text}"', text)
    (tmp_path / "run.toml").write_text(keys, encoding="utf-8")
    run, site = load_run(tmp_path / "run.toml"), load_site(tmp_path / "site.toml")
    assert run.coordinator.connection == "federation"
    check_training(run.terms(), site.policy)
    check_work(run.terms(), site.policy)
    draws = run.training.batch_size * run.training.accumulation
    assert draws > site.policy.smallest_group  # room for public rows in warm-up
