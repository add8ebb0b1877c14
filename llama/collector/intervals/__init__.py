"""What was sent and what came back becomes closed intervals: the ledger and all that is made of it."""
