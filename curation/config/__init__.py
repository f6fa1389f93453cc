"""The configuration files: strict TOML read into frozen dataclasses."""
