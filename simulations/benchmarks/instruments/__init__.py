"""Measure benchmarks: clocks, process memory, stages in child processes."""
