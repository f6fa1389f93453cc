"""The nouns of the public API, and the errors that it raises."""
