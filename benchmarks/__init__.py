"""Measures waitline beside other limiters and beside what asyncio itself allows: ``python -m benchmarks``."""
