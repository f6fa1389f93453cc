"""Studies over seeds: definitions, runs, evidence, page and picture."""
