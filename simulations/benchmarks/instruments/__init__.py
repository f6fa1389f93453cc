"""Instruments of the benchmarks: clocks, process memory, stages in child processes."""
