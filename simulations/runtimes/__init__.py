"""Runtimes on one machine: in process, sockets, Flower, and a deployment rehearsed by its pages."""
