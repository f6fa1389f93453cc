"""The silo's own process: gRPC service on a Unix socket, relay to it, preflight."""
