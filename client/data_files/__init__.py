"""Read data files, folders and hub data sets row by row, and write chosen rows back unchanged."""
