"""Evaluations: the engine scores examples once; metrics are made of the scores and never call a model."""
