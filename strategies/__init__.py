"""What can be swapped: plug-ins, their interfaces, the formulas they share, and their laws."""
