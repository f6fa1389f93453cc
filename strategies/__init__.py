"""Plug-ins of a run, their interfaces, the formulas they share, and their laws."""
