"""What can be swapped: one small pure file each, its paper in the first lines."""
