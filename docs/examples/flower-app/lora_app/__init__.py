"""A plain Flower app on LoRA factors."""
