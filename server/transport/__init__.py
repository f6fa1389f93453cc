"""Send requests and read replies: transport interface, Flower's grid, codec, envelopes."""
