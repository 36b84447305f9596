"""Does on one machine what KubeRay does in a cluster: runs RayJob objects and writes the same status back.

Read `runner.py` for the control loop, `spec.py` for what of a RayJob is honoured, refused or has no meaning on one
machine, `admission.py` for who runs next. Nothing here imports Ray: the `ray` command starts it, its Jobs REST API
runs the jobs.
"""
