"""Plug-ins and nothing else: one small file each, with its paper in the first lines."""
