"""Formulas that merging rules share: factor averages, task vectors, core space, sparsity."""
