"""Renews the model of a Deployment: alarm or schedule -> TrainJob -> EvalJobs -> candidate -> promoted or rejected.

Everything here is pure. `decide.advance` is the only way in; `desired` says which model the rollout is to bring.
"""
