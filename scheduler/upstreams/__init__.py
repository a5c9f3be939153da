"""Adapters between the scheduler and what it protects. Each needs the extra of its own name."""
