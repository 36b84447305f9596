"""Checkpoints: written next to training, visible only when complete, believed only when every byte checks out."""
