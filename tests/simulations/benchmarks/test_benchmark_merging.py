"""Laws of the benchmark of merging: it runs at a small size, and its figures are what they say."""

import json

import pytest
from typer.testing import CliRunner

from fedwinnow.cli.bench import app
from fedwinnow.simulations.benchmarks import merging
from fedwinnow.strategies.registry import BUILT_IN


def test_benchmark_merging_agrees_with_dense_svd_and_peft():
    """``core_svd`` is the dense truncated SVD, ours and PEFT's; the ratio is that of the times."""
    assert merging.bench_accuracy(48, 3, 4) < 1e-5
    found = merging.bench_peft(64, 3, 4, repeats=1)
    assert found["apart"] < 1e-4  # PEFT works in float32
    assert found["ratio"] == pytest.approx(found["peft_seconds"] / found["core_seconds"])


def test_benchmark_merging_has_a_row_for_every_rule():
    """Every built-in rule, with the error that its kind promises."""
    rows = merging.bench_rules(40, 3, 2)
    assert set(rows) == set(BUILT_IN["merging"])
    for name in ("stack", "flora", "fedex", "freeze_a", "alternate", "fedsvd", "sparse_sum"):
        assert rows[name]["error"] < 1e-6, name
    for name in ("core_svd", "fedavg_factors", "linear", "ties", "dare", "dare_ties", "knots"):
        assert 1e-3 < rows[name]["error"] < 3, name
    assert rows["core_svd"]["error"] == min(
        row["error"] for row in rows.values() if row["error"] > 1e-3
    )
    assert rows["core_svd"]["error"] == pytest.approx(rows["core_svd"]["discarded_energy"] ** 0.5)
    assert (rows["flora"]["change_rank"], rows["fedex"]["change_rank"]) == (6, 4)


@pytest.mark.flower
def test_benchmark_merging_measures_a_process_of_its_own():
    """Peak memory holds at least the adapters; their bytes are those of the shapes in bf16."""
    found = merging.bench_memory(3, rank=4, layers=1, narrow=8)
    widths = sum(o // 8 + i // 8 for o, i in merging.LLAMA_8B.values())
    assert found["adapters_bytes"] == 3 * 4 * widths * 2
    assert found["ratio"] == pytest.approx(found["peak_bytes"] / found["adapters_bytes"])
    assert found["peak_bytes"] >= found["adapters_bytes"]


def test_benchmark_merging_prints_a_table_and_json():
    """``bench merging`` gives the rules' figures both ways, without PEFT and memory if asked."""
    small = ["merging", "--size", "32", "--sites", "2", "--rank", "2", "--no-peft", "--no-memory"]
    table = CliRunner().invoke(app, small)
    assert table.exit_code == 0, table.output
    assert "fedavg_factors" in table.output
    found = json.loads(CliRunner().invoke(app, [*small, "--json"]).output)
    assert set(found) == {"accuracy", "rules"}
    assert set(found["rules"]) == set(BUILT_IN["merging"])


def test_benchmark_of_another_size_says_that_bars_are_for_the_default_one():
    """The table of a small run does not claim bars that were set for 4096 × 4096."""
    sizes = ["--size", "16", "--sites", "2", "--rank", "2", "--no-peft", "--no-memory"]
    shown = CliRunner().invoke(app, ["merging", *sizes])
    assert shown.exit_code == 0
    assert "default size: 4096 × 4096" in " ".join(shown.output.split())
