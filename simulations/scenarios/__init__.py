"""Scenario files that ship with fedwinnow."""
