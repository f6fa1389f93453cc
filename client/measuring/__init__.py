"""The measuring engine: batches in, a signal table out; it knows no run."""
