"""Make data sets and models for demos, studies and tests."""
