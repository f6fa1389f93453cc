"""The tables of ``fedwinnow bench scoring`` and ``scale``."""

from collections.abc import Iterable, Mapping
from typing import Any

from rich.table import Table

TIME, TIME_HIGH, MEMORY, KEPT, RAGGED, GROWTH = 1.05, 1.10, 1.10, 100, 1.10, 1.10
"""Bars of the design: ratios to the ordinary step, bytes, ratio to the unpadded ideal, growth."""
WORDS = {
    "plain": "plain LoRA forward + backward",
    "measure": "fedwinnow (hooks)",
    "last half": "… last half of the layers",
    "probe": "… backend probe",
    "forward": "… backend forward (dots alone)",
    "train": "a round of training",
    "piggyback": "… and backend piggyback",
    "loop": "one sample a pass (CLUES, LESS)",
    "vmap": "torch.func.vmap",
    "bergson": "bergson",
    "dattri": "dattri",
    "measure, no padding": "fedwinnow, no padding",
}
UNMEASURED = "not measured"
SERVER, EACH = "server, processor s", "ms a silo"


def scoring_table(found: Mapping[str, Any], *, peak: float = 0.0) -> Table:
    """One kind of data: a row for each way, ratios to the plain step.

    Args:
        found: What ``bench_scoring`` gave.
        peak: Of the device, teraflops; 0: not known.
    """
    plan = found["plan"]
    title = (
        f"{plan['model']}, {plan['data']} lengths: {plan['samples']} samples, {found['tokens']} "
        f"tokens ({found['padded_tokens']} with padding), {plan['dtype']} on {found['device']}, "
        f"{found['clock']} time, {found['pairs']} repetitions"
    )
    names = ("", "ratio (95 %)", "tokens/s", "peak memory", "ratio", "kept", "apart")
    table = Table(*names, title=title)
    share = peak > 0
    if share:
        table.add_column("of the peak")
    for name, row in found["rows"].items():
        words = WORDS.get(name, name)
        if row["status"] != "ok":
            table.add_row(words, row["status"])
            continue
        cells = [
            words,
            _interval(row),
            f"{row['tokens_per_second']:,.0f}",
            UNMEASURED if row["peak_bytes"] is None else _size(row["peak_bytes"]),
            "" if row["peak_ratio"] is None else f"{row['peak_ratio']:.2f}",
            _size(row["kept_bytes"]),
            "" if row["apart"] is None else f"{row['apart']:.0e}",
        ]
        table.add_row(*cells, *([f"{row['teraflops'] / peak:.1%}"] if share else []))
    table.caption = "; ".join(_bars(found))
    return table


def _bars(found: Mapping[str, Any]) -> Iterable[str]:
    yield f"bars of fedwinnow: ratio ≤ {TIME} (upper end ≤ {TIME_HIGH})"
    yield f"memory ≤ {MEMORY}, kept ≤ {KEPT} B"
    if "piggyback_over_training" in found:
        over = _interval(found["piggyback_over_training"])
        yield f"piggyback over training {over}, bar ≤ {TIME} (upper end ≤ {TIME_HIGH})"
    if "ragged_over_ideal" in found:
        yield f"ragged over no padding {_interval(found['ragged_over_ideal'])}, bar ≤ {RAGGED}"


def scale_table(rows: Iterable[Mapping[str, Any]], of: str) -> Table:
    """One row for each stage of each size.

    Args:
        rows: What ``bench_scale`` or ``bench_silos`` gave.
        of: What grows: "samples" or "silos".
    """
    rows, few = list(rows), dict[str, float]()
    timed = any("server" in stage["spent"] for row in rows for stage in row["stages"])
    columns = ("seconds", "peak", "with mapped files", "held", "beyond", "growth")
    table = Table(of, "stage", *columns, *((SERVER, EACH, "growth") if timed else ()))
    for row in rows:
        table.add_section()
        for stage in row["stages"]:
            held = ", ".join(f"{name} {_size(size)}" for name, size in stage["held"].items())
            table.add_row(
                f"{row[of]:,}",
                stage["name"],
                f"{stage['seconds']:.1f}",
                _size(stage["peak_bytes"]),
                _size(stage["resident_bytes"]),
                held,
                _size(stage["beyond_bytes"]),
                f"{stage['growth']:.2f}",
                *(_of_server(stage, row[of], few) if timed else ()),
            )
    table.caption = f"growth: beyond what is held, over the smallest; bar ≤ {GROWTH}"
    return table


def _of_server(stage: Mapping[str, Any], number: int, few: dict[str, float]) -> list[str]:
    """Processor seconds of the server, its milliseconds a silo, and these over the first size's."""
    seconds = stage["spent"]["server"]
    each = seconds / number
    least = few.setdefault(stage["name"], each)
    return [f"{seconds:.3f}", f"{1000 * each:.2f}", f"{each / least:.2f}" if least > 0 else ""]


def _interval(row: Mapping[str, float]) -> str:
    return f"{row['ratio']:.2f} ({row['ratio_low']:.2f}–{row['ratio_high']:.2f})"


def _size(number: float) -> str:
    """Bytes as a person reads them."""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if abs(number) >= size:
            return f"{number / size:.1f} {unit}"
    return f"{number:.0f} B"
