"""Probes out, replies in: what is due, the packets of every kind of probe, and whose the answers are."""
