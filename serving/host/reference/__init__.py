"""The slow reference of the hot loop, from docs/host-rules.md: plain Python and NumPy, for tests and benchmarks."""
