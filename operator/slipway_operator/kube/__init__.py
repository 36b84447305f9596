"""The operator's runtime: cached, queued, level-triggered control loops over the Kubernetes REST API.

Nothing in here knows a kind of ours beyond its name in `resource.py`, and nothing starts by being imported.
"""
