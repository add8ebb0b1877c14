"""The scraper: moves closed intervals from collectors into time-series databases.

A measurement's way: `poll` asks the collectors, `points` reads what they answer, `spool` keeps it
until every writer has acknowledged it, `delivery` hands it to the `writers`.
"""
