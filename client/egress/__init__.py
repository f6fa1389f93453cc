"""The trust boundary of a site: policy, clauses, ledger, guarded site."""
