"""What is particular to an EvalJob among runs: the models that it measures, its scores, and its gates."""
