"""The silo's own process: a gRPC service behind a Unix socket, the relay to it, and its preflight."""
