"""What the coordinator does: ask, threshold, merge, report."""
