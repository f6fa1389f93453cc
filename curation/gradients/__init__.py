"""Per-sample gradients of LoRA factors: hooks, probes, finite differences, contraction."""
