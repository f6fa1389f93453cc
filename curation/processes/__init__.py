"""Tie child processes, sockets and scratch folders to the life of the process that made them."""
