"""Run a federation on one machine: in process, over sockets, with Flower."""
