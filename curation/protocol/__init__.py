"""The message protocol: phases, requests, replies, wire format, envelopes."""
