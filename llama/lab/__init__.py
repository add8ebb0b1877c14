"""A network to break on purpose."""
