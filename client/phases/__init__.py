"""One file a phase: what a site answers to each request."""
