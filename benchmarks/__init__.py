"""Measures ppgen beside other ways to train the same model: `python -m benchmarks`; see docs/benchmarks.md.

Not part of the wheel. The contenders' libraries are an extra, `pip install '.[bench]'`; those that are missing are
reported as not installed.
"""
