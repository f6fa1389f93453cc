"""Local training: round plan, curriculum stages, optimizer steps."""
