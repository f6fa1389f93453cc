"""One lying site among honest ones, without guards and with them."""
