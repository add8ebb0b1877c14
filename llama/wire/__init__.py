"""Packet formats, pure: an octet map on top of each file, and pack and unpack over whole batches."""
