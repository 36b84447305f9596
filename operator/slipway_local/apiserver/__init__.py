"""A small Kubernetes API server for one machine: kubectl, the operator and the Ray runner talk to it.

It follows kube-apiserver wherever it serves something at all; docs/local-control-plane.md lists what it leaves out.
It schedules nothing, runs no controller but garbage collection, and admits one user: whoever holds the token.
"""
