"""What a collector answers over HTTP: its intervals as JSON, points, metrics, and a page."""
