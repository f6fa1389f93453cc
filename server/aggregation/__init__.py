"""From the adapters of one round to the next one: merge, guards, alignment."""
