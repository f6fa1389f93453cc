"""Six plug-ins for fedwinnow, one of each kind."""
