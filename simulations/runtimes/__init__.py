"""Runtimes of a federation on one machine: in process, sockets, Flower."""
