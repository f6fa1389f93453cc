"""Data sets and models made for demos, studies and tests."""
