"""The trust boundary of a site: policy, clauses, one door, ledger, budget of each sample."""
