"""
What an agent costs, measured against its peers. Run from the root of the checkout, as `python -m benchmarks`.
"""
