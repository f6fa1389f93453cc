"""Nouns and maths: what is said and computed, without a transport."""
