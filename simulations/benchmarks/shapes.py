"""Name the models and the lengths of samples that scoring is timed on."""

from dataclasses import dataclass

DATA = {"ragged": 0, "even": 128, "short": 32}
"""Name → tokens of every sample; 0 for the log-normal lengths."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """Sizes of a Llama."""

    hidden: int
    layers: int
    intermediate: int
    heads: int
    kv_heads: int
    vocabulary: int
    tied: bool = True


SHAPES = {
    "tiny": Shape(
        hidden=256, layers=4, intermediate=704, heads=8, kv_heads=4, vocabulary=2048, tied=False
    ),
    "135m": Shape(hidden=576, layers=30, intermediate=1536, heads=9, kv_heads=3, vocabulary=49_152),
    "1b": Shape(
        hidden=2048, layers=16, intermediate=8192, heads=32, kv_heads=8, vocabulary=128_256
    ),
}
"""Tiny shape, and the shapes of SmolLM2-135M and of Llama 3.2 1B."""
