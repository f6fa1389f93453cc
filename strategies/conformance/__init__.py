"""Check a plug-in by the laws of its kind, on made-up inputs."""
