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
student_entropy                           mean entropy of the body's predictions as a share of the
                                          largest, log vocabulary; in [0, 1]
teacher_confidence                        mean probability that the teacher gives the body's tokens;
                                          in [0, 1]
review_mean, review_level                 mean over the reviewers (adapters of other sites) of the
                                          body's mean loss, and of their mean loss of the domain's
                                          clean public rows, nats
review_spread                             standard deviation over the reviewers of the former less
                                          the latter, nats
========================================  =====================================================
"""

LOSSES = frozenset({"loss", "loss_sd", "loss_q90", "end_loss", "has_end", "length"})
"""One forward pass gives them all."""
CONTRASTS = frozenset({"contrast_loss_mean", "contrast_loss_min"})
"""A forward pass for each other prompt."""
OTHER_PROMPTS = CONTRASTS | {"unconditional_loss"}
"""Forward passes of their own."""
ENTROPY = frozenset({"student_entropy"})
"""From the logits of the pass that gives the losses."""
TEACHER = frozenset({"teacher_confidence"})
"""A forward pass of the teacher, another model that visits the site for it."""
ONCE = OTHER_PROMPTS | ENTROPY | TEACHER
"""Measured with the untrained adapter only."""
REVIEWS = frozenset({"review_mean", "review_level", "review_spread"})
"""A forward pass for each reviewer, at the last checkpoint only."""
OTHER_MODELS = TEACHER | REVIEWS
"""Computed with other weights than the student's: ``client/signals/extra_columns.py`` joins them to
the columns that ``client/measuring/`` computes."""
GRADIENTS = frozenset({"dot", "norm", "adam_dot", "adam_norm", "adam_adam_dot", "influence"})
"""A backward pass; only where B ≠ 0."""
ADAM = frozenset({"adam_dot", "adam_norm", "adam_adam_dot"})
"""Columns that need Adam's moments."""
REPRESENTATIONS = frozenset({"representation", "representation_corrupted"})
"""The forward pass that gives the losses gives them too."""
WIDE = REPRESENTATIONS | {"dot", "adam_dot", "adam_adam_dot", "influence"}
"""Columns with one number for each domain's reference."""
KNOWN = LOSSES | OTHER_PROMPTS | ENTROPY | GRADIENTS | REPRESENTATIONS
BACKENDS = {
    "hooks": GRADIENTS,
    "probe": GRADIENTS,
    "forward": frozenset({"dot", "influence"}),
}
"""Backend (``client/measuring/backends.py``) → gradient columns that it gives.

Every backend gives all other columns. ``forward`` gives derivatives along fixed directions, so
neither norms nor Adam's step, which is no linear function of a gradient.
"""
