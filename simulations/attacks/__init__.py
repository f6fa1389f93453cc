"""Measure attacks of one lying site among honest ones, without guards and with them."""
