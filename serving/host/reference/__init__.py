"""The slow reference of the hot loop, written from docs/host-rules.md: plain Python and NumPy, for tests and benchmarks."""
