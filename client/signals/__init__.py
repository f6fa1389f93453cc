"""The signals of a run: shards, workers, teacher, reviewers."""
