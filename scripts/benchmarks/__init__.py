"""What the tools cost, measured beside a slow, obvious reference in the same run; see docs/BENCHMARK.md."""
