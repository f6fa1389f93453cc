"""The examples of docs/api.md and of README.md run as they stand, on toy data, offline."""

import os
import re
import shutil
import socket
from pathlib import Path

import pytest
import torch
from warmed import warmed

import fedwinnow as fw
from fedwinnow.curation.model.lora_model import get_adapter
from fedwinnow.simulations.datasets.toy_federation import write_toy_scenario

ROOT = Path(__file__).parents[2]
HUB = "HuggingFaceTB/SmolLM2-135M-Instruct"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The files that the examples name, and no network."""
    write_toy_scenario(tmp_path)
    shutil.copy(tmp_path / "south.jsonl", tmp_path / "data.jsonl")
    for name, scale in (("A", 0.1), ("B", 0.3)):
        loaded = fw.load_model(tmp_path / "model", rank=4)
        warmed(loaded, scale=scale)
        fw.save_adapter(get_adapter(loaded), tmp_path / name, base=str(tmp_path / "model"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: pytest.fail("a network call"))
    threads = torch.get_num_threads()
    yield tmp_path
    torch.set_num_threads(threads)


def blocks(page):
    """Python blocks of a page that speak of the API, before its reference."""
    text = (ROOT / page).read_text(encoding="utf-8").partition("## Reference")[0]
    found = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    return [block.replace(HUB, "model") for block in found if "fw." in block]


def test_api_page_examples_run(folder):
    """Every block runs after those before it, and what they promise is there."""
    names = {}
    for number, block in enumerate(blocks("docs/api.md")):
        exec(compile(block, f"docs/api.md, block {number}", "exec"), names)  # noqa: S102 - our own page
    assert len(names["frame"]) == len(names["samples"]) == 12
    assert len(names["dropped"]) == 12 - names["selection"].count
    assert (folder / "merged" / "adapter_model.safetensors").is_file()
    assert isinstance(names["record"], fw.RunRecord)
    assert set(names["shares"]) == {"north", "south", "west"}
    assert "curated" in names["losses"]
    assert os.listdir(folder / "runs") == ["notebook"]  # noqa: PTH208 - names alone


@pytest.mark.usefixtures("folder")
def test_readme_notebook_example_runs():
    """The ten lines of README.md run."""
    (block,) = blocks("README.md")
    names = {}
    exec(compile(block, "README.md", "exec"), names)  # noqa: S102 - our own page
    assert len(names["selection"].ids) == 12
    assert len([line for line in block.splitlines() if line and "import" not in line]) <= 10
