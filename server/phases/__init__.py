"""One file a phase: check the replies and absorb them."""
