"""The Slipway API: custom resources, conditions and the run contract, as pydantic models.

This package imports nothing of ours, and no torch, ray or kubernetes: the operator, the command line, the local
control plane and the training image all share it.
"""

GROUP = "slipway.dev"
VERSION = "v1alpha1"
API_VERSION = f"{GROUP}/{VERSION}"
