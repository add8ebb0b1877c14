"""The paths that flows cross: how they are traced, what is remembered of them, what hops are called."""
