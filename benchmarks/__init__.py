"""What LLAMA costs and how true its figures are, as ratios to programs measured in the same run.

``make bench``, or ``python -m benchmarks [NAMES]``. docs/performance.rst tells how to read it.
"""
