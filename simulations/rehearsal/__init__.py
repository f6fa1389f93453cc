"""A deployment rehearsed on this machine by the documented steps."""
