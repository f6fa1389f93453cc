"""Ask, check the replies and absorb them: one file a phase."""
