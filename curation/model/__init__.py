"""A frozen base model with one LoRA adapter: loading, losses, hidden states."""
