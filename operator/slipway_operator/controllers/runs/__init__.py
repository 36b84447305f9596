"""What every kind shares that is carried out as a run: attempts, each one RayJob, until one succeeds or none is left.

`kind.py` says what a kind adds; `decide.py` is the ladder; `controller.py` does what it says.
"""
