"""LoRA and sparse adapters: exact algebra, checks, comparison, folders on disk."""
