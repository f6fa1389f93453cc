"""Flower's own strategies as merging rules."""
