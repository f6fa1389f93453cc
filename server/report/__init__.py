"""Write what a finished run leaves behind: record, page, charts, manifest."""
