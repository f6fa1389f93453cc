"""The site, a silo's end of the federation: read, measure, score, select, train, evaluate."""
