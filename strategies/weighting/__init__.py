"""Weightings: from kept counts to each site's share of the merge."""
