"""LLAMA: Loss & LAtency MAtrix.

Artificially produces traffic between the hosts of a network and says how much is lost, how late
it is, in which direction and class, and where.
"""

__version__ = "0.1.0"
