"""The log of many runs: plans, comparisons, tables and charts."""
