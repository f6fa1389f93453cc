"""The trust boundary of a site: policy, clauses, ledger, and the one guarded door."""
