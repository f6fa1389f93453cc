"""Federations on one machine: data sets, runtimes, studies, recipes, attacks, benchmarks."""
