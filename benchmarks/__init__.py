"""
What an agent costs, measured. Run from the root of the checkout, as `python -m benchmarks.http1_warm`.
"""
