"""The collector: sends probes, matches replies, closes intervals, serves what it measured."""
