"""Flower's part of the public API; Flower is loaded here and nowhere else in it."""

from fedwinnow.server.strategy import CurationStrategy

__all__ = ["CurationStrategy"]
