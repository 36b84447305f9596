"""The scoring engine: a model and examples in, scores out. torch and transformers only; it never imports Ray."""
