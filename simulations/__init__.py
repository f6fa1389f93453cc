"""Simulate federations on one machine: data, runtimes, studies, recipes, attacks, benchmarks."""
