import json
import os
import re
import shutil
import signal
import ssl
import subprocess
import sys
from http.client import HTTPConnection, HTTPSConnection
from pathlib import Path

import pytest

from fedwinnow.simulations.rehearsal.documented_steps import (
    DEPLOY,
    read_steps,
    settings_of,
    wait_until,
)
from fedwinnow.simulations.rehearsal.loopback import open_rehearsal

ROOT = DEPLOY.parents[1]
SITES = ("north", "south")
SCRIPTS = sorted(path for path in (DEPLOY / "scripts").iterdir() if path.name != "settings")
UNITS = sorted((DEPLOY / "systemd").glob("*.service"))
PROTOBUF = "application/protobuf"
APP = """\
[project]
name = "echo"
version = "0.1.0"
dependencies = []

[tool.flwr.app]
publisher = "fedwinnow"

[tool.flwr.app.components]
serverapp = "echo_app:server"
clientapp = "echo_app:client"

[tool.flwr.app.config]
out = ""
nodes = 1
"""
flower = [
    pytest.mark.flower,
    pytest.mark.skipif(
        not Path("/proc").is_dir() or shutil.which("nginx") is None,
        reason="needs /proc and nginx (apt-get install nginx)",
    ),
]


@pytest.fixture(scope="module")
def stage():
    """Coordinator and two nodes, as the pages start them; no agents."""
    with open_rehearsal((*SITES, "stranger")) as stage:
        stage.open()
        for site in SITES:
            stage.admit(site)
            stage.join(site, agent=False)
        yield stage


def post(address: str, path: str, folder: Path, method: str = "POST") -> tuple[int, str]:
    """Status and body of a call with the authority's certificate and nothing else."""
    context = ssl.create_default_context(cafile=str(folder / "certificates" / "ca.crt"))
    connection = HTTPSConnection(address, context=context, timeout=10)
    try:
        connection.request(method, path, body=b"", headers={"Content-Type": PROTOBUF})
        reply = connection.getresponse()
        return reply.status, reply.read().decode(errors="replace")
    finally:
        connection.close()


def ask(stage, name: str) -> list[dict[str, str]]:
    """What the nodes say to an app that is submitted to the SuperLink."""
    app = stage.root / "echo"
    app.mkdir(exist_ok=True)
    (app / "pyproject.toml").write_text(APP)
    shutil.copy(Path(__file__).with_name("echo_app.py"), app)
    out = stage.root / f"{name}.json"
    command = ["flwr", "run", str(app), "federation"]
    command += ["--run-config", f'out="{out}" nodes={len(SITES)}', "--format", "json"]
    environment = stage.coordinator.environment | {"FLWR_TELEMETRY_ENABLED": "0"}
    subprocess.run(command, env=environment, capture_output=True, check=True, timeout=60)
    wait_until(out.exists, "echoes", log=stage.coordinator.log("executor"))
    return json.loads(out.read_text())


@pytest.fixture(scope="module")
def echoes(stage):
    """What the nodes say to an app."""
    return ask(stage, "echoes")


@pytest.mark.parametrize(
    "script", [*SCRIPTS, DEPLOY / "scripts" / "settings"], ids=lambda p: p.name
)
def test_scripts_are_sound_sh(script):
    """Each script parses as sh, stops at the first error, and shellcheck has nothing to say."""
    subprocess.run(["/bin/sh", "-n", str(script)], check=True)
    if script.name not in {"supervise", "settings"}:
        assert "\nset -eu\n" in script.read_text()
        assert script.stat().st_mode & 0o111
    if shutil.which("shellcheck"):
        done = subprocess.run(["shellcheck", "-x", script.name], cwd=script.parent, check=False)
        assert done.returncode == 0


@pytest.mark.parametrize("unit", UNITS, ids=lambda p: p.stem)
def test_units_start_what_the_pages_start(unit):
    """A unit runs a served step of a page, restarts it after 15 s, and gives it a user."""
    text = unit.read_text()
    command = re.search(r"^ExecStart=(.*)$", text, flags=re.MULTILINE)[1]
    for folder in ("/etc/fedwinnow/", "/opt/fedwinnow/bin/"):
        command = command.replace(folder, "")
    served = [
        lines.removeprefix("scripts/supervise ").strip()
        for page in ("coordinator.md", "silo.md")
        for kind, lines in read_steps(page).values()
        if kind == "serve"
    ]
    assert command in served
    assert len(UNITS) == len(served)
    assert "Restart=always\nRestartSec=15\n" in text
    assert "StartLimitIntervalSec=0" in text
    assert ("\nUser=fedwinnow" in text) == (unit.stem != "fedwinnow-proxy")


def test_pages_name_each_script_and_no_other():
    """Each script that a page's step runs is there, and each that is there is run by one."""
    told = "".join(
        lines for page in ("coordinator.md", "silo.md") for _, lines in read_steps(page).values()
    )
    assert set(re.findall(r"scripts/([a-z-]+)", told)) == {path.name for path in SCRIPTS}


def test_settings_refuse_what_is_open_or_missing(tmp_path):
    """A SuperLink or node that others could reach is not started; no settings, no start."""
    for file, script, name in (
        ("coordinator.env", "start-superlink", "SUPERLINK"),
        ("coordinator.env", "start-proxy", "SUPERLINK"),
        ("silo.env", "start-supernode", "SUPERNODE"),
        ("silo.env", "start-superexec", "SUPERNODE"),
    ):
        words = settings_of(file) | {name: "0.0.0.0:8000", "FLOWER": str(tmp_path)}
        (tmp_path / file).write_text("".join(f'{k}="{v}"\n' for k, v in words.items()))
        command = [str(DEPLOY / "scripts" / script)]
        open_one = subprocess.run(
            [*command, str(tmp_path / file)], capture_output=True, text=True, check=False
        )
        assert open_one.returncode == 2
        assert f"{name} must be an address of this machine" in open_one.stderr
        none = subprocess.run(command, capture_output=True, text=True, check=False)
        assert none.returncode == 2
        assert "expected a settings file" in none.stderr


def test_supervise_starts_again_after_a_pause_and_ends_with_its_child(tmp_path):
    """What ends starts again in 15 s; a shorter pause is refused; SIGTERM ends both."""
    supervise = str(DEPLOY / "scripts" / "supervise")
    short = subprocess.run([supervise, "true"], env={"RESTART_PAUSE": "3"}, check=False)
    assert short.returncode == 2
    said = tmp_path / "said"
    with said.open("wb") as log:
        watch = subprocess.Popen([supervise, "sh", "-c", "exit 7"], stderr=log)
    wait_until(
        lambda: "ended with code 7; it is started again in 15 s" in said.read_text(), "", log=said
    )
    watch.terminate()
    assert watch.wait(timeout=5) == 0
    child = tmp_path / "child"
    watch = subprocess.Popen([supervise, "sh", "-c", f"echo $$ > {child}; exec sleep 60"])
    wait_until(lambda: child.exists() and child.read_text().strip() != "", "", log=said)
    watch.terminate()
    assert watch.wait(timeout=5) == 0
    assert not Path("/proc", child.read_text().strip()).exists()


def test_shim_is_up_at_once():
    """Flower starts a process for each message: the ClientApp loads neither torch nor the data."""
    code = (
        "import sys, fedwinnow.client.app\n"
        "heavy = {'torch', 'transformers', 'peft', 'datasets', 'scipy'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


class TestLoopback:
    """The coordinator's and the silos' Flower, as the pages start it."""

    pytestmark = flower

    def test_proxy_carries_a_message_to_each_node_and_back(self, echoes):
        """A node that knows the proxy only gets a message and its reply arrives."""
        assert {json.loads(echo["node"])["site"] for echo in echoes} == set(SITES)
        assert {echo["word"] for echo in echoes} == {"hello"}

    def test_node_knows_its_agent_and_nothing_is_reported_home(self, stage, echoes):
        """Node config names socket and token; telemetry is off in shipped code too."""
        for echo in echoes:
            node, told = json.loads(echo["node"]), json.loads(echo["environment"])
            run = stage.silos[node["site"]].folder / "run"
            assert node["agent-socket"] == str(run / "agent.sock")
            assert node["agent-token"] == str(run / "token")
            assert told["FLWR_TELEMETRY_ENABLED"] == "0"
            assert told["FLWR_DISABLE_UPDATE_CHECK"] == "1"
            assert told["FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION"] == "1"

    @pytest.mark.parametrize(
        "path",
        [
            "/v1/control/list-runs",
            "/v1/control/start-run",
            "/v1/control/register-node",
            "/v1/runtime/acquire-task",
            "/v1/runtime/push-task-output",
            "/health",
            "/",
            "/openapi.json",
            "/v1/fleet/../control/list-runs",
            "/v1/fleet/%2e%2e/control/list-runs",
            "/v1/fleet/%252e%252e/control/list-runs",
            "/v1/fleet/..%2fcontrol%2flist-runs",
            "/v1//control/list-runs",
            "//v1/control/list-runs",
            "/V1/control/list-runs",
        ],
    )
    def test_proxy_refuses_control_and_runtime(self, stage, path):
        """No spelling of another path passes: the proxy itself says 404."""
        status, text = post(stage.proxy, path, stage.coordinator.folder)
        assert (status, "nginx" in text) == (404, True)

    def test_proxy_passes_the_fleet_and_only_to_post(self, stage):
        """A fleet path reaches the SuperLink, which asks for a node's key; GET does not."""
        folder = stage.coordinator.folder
        status, text = post(stage.proxy, "/v1/fleet/pull-messages", folder)
        assert status == 401
        assert "Invalid SuperNode authentication" in text
        assert post(stage.proxy, "/v1/fleet/pull-messages", folder, "GET")[0] == 403

    def test_superlink_and_node_keep_tasks_for_the_executor_with_the_secret(self, stage):
        """Without the secret nobody is given a part of a run, even on this machine."""
        status, _ = post(stage.superlink, "/v1/runtime/acquire-task", stage.coordinator.folder)
        assert status == 401
        node = re.search(
            r'SUPERNODE="(.*)"', (stage.silos["north"].folder / "silo.env").read_text()
        )
        plain = HTTPConnection(node[1], timeout=10)
        plain.request("POST", "/v1/runtime/acquire-task", headers={"Content-Type": PROTOBUF})
        assert plain.getresponse().status == 401
        plain.close()

    def test_superlink_listens_on_loopback_only(self, stage):
        """Neither SuperLink nor nodes listen on an address that others reach."""
        for party in (stage.coordinator, *(stage.silos[site] for site in SITES)):
            for settings in party.folder.glob("*.env"):
                for name, value in re.findall(r"(SUPER[A-Z]+)=\"(.*)\"", settings.read_text()):
                    port = f"{int(value.rpartition(':')[2]):04X}"
                    lines = Path("/proc/net/tcp").read_text().splitlines()[1:]
                    held = [line.split()[1] for line in lines if line.split()[3] == "0A"]
                    mine = [address for address in held if address.endswith(f":{port}")]
                    assert mine == [f"0100007F:{port}"], name

    def test_unregistered_key_is_refused(self, stage):
        """A node whose key nobody registered does not come up: code 2004, and its process ends."""
        stranger = stage.silos["stranger"]
        stranger.step("node-key")
        shutil.copy(stage.coordinator.folder / "certificates" / "ca.crt", stranger.folder)
        stranger.serve("node")
        log = stranger.log("node")
        wait_until(
            lambda: "it is started again in 15 s" in log.read_text(), "end of the node", log=log
        )
        stranger.stop("node")
        assert "2004" in log.read_text()
        assert "SuperNode ID" not in log.read_text()

    def test_secrets_are_readable_for_their_owner_only(self, stage):
        """Keys and secrets are 0600 where no group is named; certificates are public."""
        certificates = stage.coordinator.folder / "certificates"
        private = [*certificates.glob("*.key"), certificates / "executor.secret"]
        private += [
            stage.silos["north"].folder / "node" / name for name in ("key", "executor.secret")
        ]
        assert len(private) == 6
        assert {file.stat().st_mode & 0o777 for file in private} == {0o600}
        assert {f.stat().st_mode & 0o777 for f in certificates.glob("*.crt")} == {0o644}

    def test_certificates_can_be_renewed_and_the_authority_stays(self, stage):
        """A second run makes other certificates under the same authority and keeps the secret."""
        folder = stage.coordinator.folder / "certificates"
        kept, renewed = ("ca.crt", "executor.secret"), ("proxy.crt", "superlink.crt")
        before = {name: (folder / name).read_bytes() for name in kept + renewed}
        stage.coordinator.step("certificates")
        for name in kept:
            assert (folder / name).read_bytes() == before[name]
        for name in renewed:
            assert (folder / name).read_bytes() != before[name]
            command = ["openssl", "verify", "-x509_strict", "-CAfile", str(folder / "ca.crt")]
            subprocess.run([*command, str(folder / name)], check=True, capture_output=True)

    @pytest.mark.slow
    @pytest.mark.usefixtures("echoes")
    def test_everything_comes_back_after_kill_9(self, stage):
        """SuperLink, proxy, a node and its executor die: supervisors restart them, ids stay."""
        north = stage.silos["north"]
        before = re.findall(r"SuperNode ID: (\d+)", north.log("node").read_text())
        for party, name, program in (
            (stage.coordinator, "superlink", "flower-superlink"),
            (stage.coordinator, "executor", "flower-superexec"),
            (stage.coordinator, "proxy", "nginx"),
            (north, "node", "flower-supernode"),
            (north, "node-executor", "flower-superexec"),
        ):
            [pid] = party.pids(name, program)
            os.kill(pid, signal.SIGKILL)
        log = north.log("node")
        wait_until(
            lambda: log.read_text().count("SuperNode ID:") == 2, "node", log=log, longest=240.0
        )
        assert re.findall(r"SuperNode ID: (\d+)", log.read_text()) == before * 2
        assert len(ask(stage, "again")) == len(SITES)
