"""What a silo does: read, measure, score, select, train, evaluate."""
