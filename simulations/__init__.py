"""Whole federations in a box, and the command line."""
