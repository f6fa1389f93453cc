"""One run at one site: agreed terms, tables on disk, process cache, review queue."""
