"""The matrix in the browser: questions to a time-series store, a JSON API, one page."""
