"""Scorers: from signals to one number per sample, higher is better."""
