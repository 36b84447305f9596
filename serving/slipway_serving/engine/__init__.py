"""The engine: many answers at a time from one model, token by token."""

from slipway_serving.engine.engine import Engine, EngineFailed, QueueFull
from slipway_serving.engine.generation import Generation, Piece

__all__ = ["Engine", "EngineFailed", "Generation", "Piece", "QueueFull"]
