"""Rehearse a deployment on this machine by the documented steps."""
