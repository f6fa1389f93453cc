"""Answer a request: one file a phase."""
