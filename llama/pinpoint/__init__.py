"""Where a network loses: paths of flows, suspects by name, and incidents."""
