"""Derive seeds from names, so that every random choice repeats on every machine."""

import hashlib


def derive_seed(seed: int, *names: object) -> int:
    """Return a 63-bit seed for one purpose: a hash of the run's seed and the purpose's names."""
    text = "\x1f".join([str(seed), *map(str, names)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1
