"""The benchmark that tells the story: many tenants, one account, and what each way of sharing it gives them.

One trace is played to one simulated Anthropic account at several loads, once for each way in which an
application may send its tenants' prompts: ``python -m benchmarks.degradation``.
"""
