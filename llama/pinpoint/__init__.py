"""Where a network loses: suspects by name, from flows and paths, and incidents."""
