"""Names of the signal columns, and what each costs.

========================================  =====================================================
column                                    what it is
========================================  =====================================================
loss, loss_sd, loss_q90                   mean, spread and 90 % quantile of the body's token
                                          losses given the prompt, nats
length, end_loss, has_end                 body tokens; loss of the end of turn (0 if cut away)
unconditional_loss                        mean loss of the same body under an empty prompt
contrast_loss_mean, contrast_loss_min     the same under other public prompts
representation,                           cosine of the body's mean last state with each domain's
representation_corrupted                  clean anchors, and with their seeded corruptions
dot, norm, adam_dot, adam_norm            per-sample gradient against the reference gradients
adam_adam_dot                             the same with Adam's step on both sides
influence                                 the same against DataInf's preconditioned references
========================================  =====================================================
"""

LOSSES = frozenset({"loss", "loss_sd", "loss_q90", "end_loss", "has_end", "length"})
"""One forward pass gives them all."""
CONTRASTS = frozenset({"contrast_loss_mean", "contrast_loss_min"})
"""A forward pass for each other prompt."""
ONCE = CONTRASTS | {"unconditional_loss"}
"""Measured with the untrained adapter only."""
GRADIENTS = frozenset({"dot", "norm", "adam_dot", "adam_norm", "adam_adam_dot", "influence"})
"""A backward pass; only where B ≠ 0."""
ADAM = frozenset({"adam_dot", "adam_norm", "adam_adam_dot"})
"""Those that need Adam's moments."""
REPRESENTATIONS = frozenset({"representation", "representation_corrupted"})
"""The forward pass that gives the losses gives them too."""
WIDE = REPRESENTATIONS | {"dot", "adam_dot", "adam_adam_dot", "influence"}
"""Columns with one number for each domain's reference."""
KNOWN = LOSSES | ONCE | GRADIENTS | REPRESENTATIONS
