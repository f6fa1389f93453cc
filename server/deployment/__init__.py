"""Submit a run to Flower and supervise it."""
