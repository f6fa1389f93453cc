"""Merge the adapters of a round: weights, guards, alignment, kept adapters."""
