"""Scores: histograms and their edges, selection, ranking metrics, clusters, intervals."""
