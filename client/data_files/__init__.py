"""From data files to gated samples and corrupted public anchors, and kept rows back to files."""
