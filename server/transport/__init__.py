"""How requests travel: the transport interface, Flower's grid, codec and envelopes."""
