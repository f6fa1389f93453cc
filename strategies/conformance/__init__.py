"""The laws that plug-ins of each kind are held to, on made-up inputs."""
