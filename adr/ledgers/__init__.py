"""Which jobs there are and what became of them: one ledger per backend, behind `base.Ledger`."""
