"""Data types, message protocol, configuration, adapters and gradients: what both ends share."""
