"""Build the tables of ``fedwinnow bench scoring`` and ``scale``."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

TIME, TIME_HIGH, MEMORY, KEPT, RAGGED, GROWTH = 1.05, 1.10, 1.10, 100, 1.10, 1.10
"""Bars of the design: ratios to the ordinary step, bytes, ratio to the unpadded ideal, growth."""
WORDS = {
    "plain": "plain pass",
    "measure": "fedwinnow, hooks",
    "last half": "… last half",
    "probe": "… probe",
    "forward": "… forward, dots only",
    "train": "a training round",
    "piggyback": "… and piggyback",
    "loop": "one by one",
    "vmap": "torch.func.vmap",
    "bergson": "bergson",
    "dattri": "dattri",
    "measure, no padding": "fedwinnow, unpadded",
}
UNMEASURED = "–"
_SIZES = ("time", "peak", "and mapped", "held", "beyond", "growth")


def scoring_table(found: Mapping[str, Any], *, peak: float = 0.0) -> Table:
    """Return the table of one kind of data: a row for each way, with ratios to the plain step.

    Args:
        found: Result of ``bench_scoring``.
        peak: Peak of the device, teraflops; 0: not known.
    """
    plan = found["plan"]
    title = (
        f"{plan['model']}, {plan['data']} lengths: {plan['samples']} samples, {found['tokens']} "
        f"tokens ({found['padded_tokens']} with padding), {plan['dtype']} on {found['device']}, "
        f"{found['clock']} time, {found['pairs']} repetitions"
    )
    columns = ("ratio", "95 %", "tokens/s", "memory", "ratio", "kept", "apart")
    share = peak > 0
    table = _narrow(title, ("",), (*columns, *(["peak"] if share else [])))
    missing = []
    for name, row in found["rows"].items():
        words = WORDS.get(name, name)
        if row["status"] != "ok":
            missing.append(f"{words}: {row['status']}")
            continue
        cells = [
            words,
            f"{row['ratio']:.2f}",
            f"{row['ratio_low']:.2f}–{row['ratio_high']:.2f}",
            f"{row['tokens_per_second']:,.0f}",
            UNMEASURED if row["peak_bytes"] is None else _size(row["peak_bytes"]),
            "" if row["peak_ratio"] is None else f"{row['peak_ratio']:.2f}",
            _size(row["kept_bytes"]),
            "" if row["apart"] is None else f"{row['apart']:.0e}",
        ]
        table.add_row(*cells, *([f"{row['teraflops'] / peak:.1%}"] if share else []))
    table.caption = "; ".join((*_bars(found), *missing))
    return table


def _bars(found: Mapping[str, Any]) -> Iterable[str]:
    yield f"bars of fedwinnow: ratio ≤ {TIME} (upper end ≤ {TIME_HIGH})"
    yield f"memory ≤ {MEMORY}, kept ≤ {KEPT} B; {UNMEASURED}: not measured"
    if "piggyback_over_training" in found:
        over = _interval(found["piggyback_over_training"])
        yield f"piggyback over training {over}, bar ≤ {TIME} (upper end ≤ {TIME_HIGH})"
    if "ragged_over_ideal" in found:
        yield f"ragged over no padding {_interval(found['ragged_over_ideal'])}, bar ≤ {RAGGED}"


def scale_tables(rows: Sequence[Mapping[str, Any]], of: str) -> list[Table]:
    """Return a table of memory by size and stage; for silos also one of the server's time.

    Args:
        rows: Result of ``bench_scale`` or ``bench_silos``.
        of: What grows: "samples" or "silos".
    """
    timed = all("server" in stage["spent"] for row in rows for stage in row["stages"])
    return [_memory(rows, of), *([_server(rows, of)] if timed else [])]


def _memory(rows: Iterable[Mapping[str, Any]], of: str) -> Table:
    table = _narrow("Memory", (of, "stage"), _SIZES)
    for row in rows:
        table.add_section()
        for stage in row["stages"]:
            table.add_row(
                f"{row[of]:,}",
                stage["name"],
                f"{stage['seconds']:.1f} s",
                _size(stage["peak_bytes"]),
                _size(stage["resident_bytes"]),
                _size(sum(stage["held"].values())),
                _size(stage["beyond_bytes"]),
                f"{stage['growth']:.2f}",
            )
    table.caption = f"growth: beyond what is held, over the smallest; bar ≤ {GROWTH}"
    return table


def _server(rows: Iterable[Mapping[str, Any]], of: str) -> Table:
    """Return a table of the server's processor seconds, milliseconds a silo, and their growth."""
    table = _narrow("Processor time of the server", (of, "stage"), ("server", "a silo", "growth"))
    few: dict[str, float] = {}
    for row in rows:
        table.add_section()
        for stage in row["stages"]:
            seconds = stage["spent"]["server"]
            each = seconds / row[of]
            least = few.setdefault(stage["name"], each)
            growth = f"{each / least:.2f}" if least > 0 else ""
            cells = (f"{seconds:.3f} s", f"{1000 * each:.2f} ms", growth)
            table.add_row(f"{row[of]:,}", stage["name"], *cells)
    table.caption = "growth: time a silo, over the smallest federation's; 1 is linear"
    return table


def _narrow(title: str, words: Sequence[str], figures: Sequence[str]) -> Table:
    """Return a table that fits a terminal of 80 columns: columns of words, then of figures."""
    table = Table(*words, title=title, box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for name in figures:
        table.add_column(name, justify="right")
    return table


def _interval(row: Mapping[str, float]) -> str:
    return f"{row['ratio']:.2f} ({row['ratio_low']:.2f}–{row['ratio_high']:.2f})"


def _size(number: float) -> str:
    """Format bytes for a person."""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if abs(number) >= size:
            return f"{number / size:.1f} {unit}"
    return f"{number:.0f} B"
