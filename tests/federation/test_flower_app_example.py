"""The example of a plain Flower app learns with our strategy, over serialised messages."""

import sys

import numpy as np
import pytest
from flwr.app import Context, RecordDict
from repository import ROOT

pytestmark = pytest.mark.flower

EXAMPLE = ROOT / "docs" / "examples" / "flower-app"
CONFIG = {"rounds": 8, "rank": 4, "alpha": 8.0}


@pytest.fixture
def example(monkeypatch):
    """The app's modules, as an installed app has them."""
    monkeypatch.syspath_prepend(str(EXAMPLE))
    from lora_app import client_app, server_app, task

    yield client_app, server_app, task
    for name in [name for name in sys.modules if name.startswith("lora_app")]:
        monkeypatch.delitem(sys.modules, name)


@pytest.mark.parametrize("merging", ["core_svd", "fedavg_factors", "flower:FedAvgM"])
def test_flower_app_example_learns_together(example, make_grid, capsys, merging):
    """Three clients' loss falls below a tenth, and below what the first round reached."""
    client_app, server_app, task = example
    grid = make_grid(dict.fromkeys((1, 2, 3), client_app.app))
    for context in grid.contexts.values():
        context.run_config = CONFIG
    own = Context(1, 0, {}, RecordDict(), CONFIG | {"merging": merging})
    server_app.main(grid, own)
    losses = [float(line.split()[-1]) for line in capsys.readouterr().out.splitlines()]
    assert len(losses) == 8
    assert losses[-1] < losses[0]
    start = np.mean([task.loss_of(task.start(4), task.data_of(i), 8.0) for i in range(3)])
    assert losses[-1] < 0.1 * start
    assert set(own.state.array_records["arrays"]) == {task.A, task.B}


def test_flower_app_example_is_ten_lines_of_server():
    """Between the imports and the printing, the server app has at most ten lines."""
    text = (EXAMPLE / "lora_app" / "server_app.py").read_text(encoding="utf-8")
    body = text.split('each."""\n')[1].split("    for number")[0]
    assert len(body.strip().splitlines()) <= 10
