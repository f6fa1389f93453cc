"""Orderings: from the scores of kept samples to an order of training."""
