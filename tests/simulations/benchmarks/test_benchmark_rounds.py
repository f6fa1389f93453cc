"""Laws of the benchmark of rounds: its figures are what they are called, and its servers echo."""

import hashlib
import json

import pytest
from typer.testing import CliRunner

from fedwinnow.cli import bench
from fedwinnow.curation.errors import ProtocolError
from fedwinnow.curation.protocol.envelope import sign, verify
from fedwinnow.curation.protocol.keys import PrivateKey
from fedwinnow.simulations.benchmarks import agent_transfer, rounds


def test_benchmark_rounds_figures_are_medians_of_pairs():
    """The overhead is the median of differences, not the difference of medians."""
    found = rounds.figures([[1.0, 2.0], [5.0, 5.5], [2.0, 5.0]])
    assert found == {
        "empty_seconds": 2.0,
        "round_seconds": 5.0,
        "overhead_seconds": 1.0,
        "overhead_worst_seconds": 3.0,
        "pairs": 3,
    }


def test_benchmark_pairs_alternate_and_leave_the_first_out():
    """Three pairs after one more: each side four times, in changing order."""
    calls: list[str] = []
    times = agent_transfer.timed_pairs(lambda: calls.append("a"), lambda: calls.append("b"), 3)
    assert len(times) == 3
    assert "".join(calls) == "baabbaab"
    assert all(second >= 0 for pair in times for second in pair)


def test_benchmark_echo_checks_and_signs():
    """The stand-in does what the hop pays for: the signature in, a signed reply out."""
    key, words = PrivateKey.new(), {"site": "echo", "run": "r", "phase": "train", "sequence": 3}
    echo, sent = agent_transfer.Echo(key), sign(key, b"payload", **words)
    stamp = echo.admit(sent.stamp, sent.signature)
    back = echo.answer(stamp, b"payload").signed()
    assert verify(back, key.public).digest == hashlib.sha256(b"payload").hexdigest()
    with pytest.raises(ProtocolError):
        echo.admit(sent.stamp, bytes(64))


def test_benchmark_table_holds_every_figure(monkeypatch):
    """``fedwinnow bench rounds`` prints each path beside its bar; --json gives the same figures."""
    over = rounds.figures([[3.0, 4.0]]) | {"socket_seconds": 0.1}
    hop = {"ratio": 1.25, "agent_seconds": 1.0, "bare_seconds": 0.8, "encrypt_seconds": 0.3}
    monkeypatch.setattr(rounds, "bench_deployed", lambda pairs: over)
    monkeypatch.setattr(rounds, "bench_in_process", lambda pairs: {"seconds": 0.05})
    monkeypatch.setattr(agent_transfer, "bench_transfer", lambda pairs, megabytes: hop)
    shown = CliRunner().invoke(bench.app, ["rounds"]).stdout
    assert all(part in shown for part in ("+1.00 s", "≤ 2 s", "1.25", "≤ 1.5", "0.050 s"))
    found = json.loads(CliRunner().invoke(bench.app, ["rounds", "--json"]).stdout)
    assert found == {"in_process": {"seconds": 0.05}, "transfer": hop, "deployed": over}


@pytest.mark.slow
def test_benchmark_rounds_run_in_process_and_over_a_socket():
    """Both benchmarks that need no Flower give positive figures."""
    assert rounds.bench_in_process(2)["seconds"] > 0
    found = agent_transfer.bench_transfer(1, megabytes=3)
    assert found["agent_seconds"] > 0 < found["bare_seconds"]
