"""From a file to gated samples, and public anchors with their corruptions."""
