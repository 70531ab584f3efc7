"""Speed, as ratios against a real peer measured in the same run: `python -m benchmarks.NAME`."""
