"""The coordinator's end: ask, check, set the threshold, merge, report."""
