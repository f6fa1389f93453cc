"""Merge, remerge and compare PEFT adapter folders without a run."""
