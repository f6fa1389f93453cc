"""Merging rules: from the sites' adapters to one, on CPU tensors of the factors."""
