"""One run at the coordinator: the fold, its driver, folder, status and preflight."""
