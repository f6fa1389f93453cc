"""Thresholds: from score summaries to one number that every site applies."""
