"""Check the clauses on work: what the terms make a site compute, before a file is opened."""

from fedwinnow.client.boundary.clauses import require
from fedwinnow.client.boundary.group_sizes import step_draws
from fedwinnow.client.runs.agreed_terms import optimizer_steps
from fedwinnow.curation.config.run import RunTerms
from fedwinnow.curation.config.site import PolicySection


def run_draws(terms: RunTerms) -> int:
    """Return the samples that all optimizer steps of a run draw, warm-up and every arm."""
    return optimizer_steps(terms) * step_draws(terms)


def pass_tokens(terms: RunTerms) -> int:
    """Return the most tokens of one forward pass, measured or trained.

    A batch holds at least one sample, however long; ``measuring.batch_tokens = 0`` asks memory.
    """
    longest = terms.model.max_length
    trained = terms.training.batch_size * longest if optimizer_steps(terms) else 0
    return max(longest, trained, terms.measuring.batch_tokens)


def passes_of_a_sample(terms: RunTerms) -> dict[str, int]:
    """Return how often a run has one public or private sample read for one measurement, by key."""
    return {
        "anchors.copies": terms.anchors.copies,
        "measuring.contrast_prompts": terms.measuring.contrast_prompts,
        "evaluation.generate": terms.evaluation.generate,
        "scorer.comparison": len(terms.scorer.comparison),
    }


def check_work(terms: RunTerms, section: PolicySection) -> None:
    """Refuse terms that ask for more work than a clause allows.

    Threads are no clause: the agent takes as many as it has.

    Raises:
        RefusalError: a clause does not hold; the message holds numbers of the terms alone.
    """
    draws, most = run_draws(terms), section.max_draws
    require("max_draws", f"{draws} samples drawn by its steps", draws <= most, f"at most {most}")
    tokens, most = pass_tokens(terms), section.max_pass_tokens
    came = f"passes of {tokens} tokens (batch size · model.max_length, measuring.batch_tokens)"
    require("max_pass_tokens", came, tokens <= most, f"at most {most}")
    most = section.max_repeats
    for name, number in passes_of_a_sample(terms).items():
        require("max_repeats", f"{name} {number}", number <= most, f"at most {most}")
