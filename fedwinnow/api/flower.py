"""Flower's part of the public API; Flower is loaded here and nowhere else in it."""
