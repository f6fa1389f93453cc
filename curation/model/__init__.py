"""A frozen base model with one LoRA adapter: loading, tokens, losses, hidden states."""
