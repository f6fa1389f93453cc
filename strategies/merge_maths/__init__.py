"""Formulas that plug-ins share."""
