"""The engine: many answers at a time from one model, token by token."""

from slipway_serving.engine.engine import Engine, QueueFull
from slipway_serving.engine.generation import Generation, Piece
from slipway_serving.engine.streams import EngineFailed

__all__ = ["Engine", "EngineFailed", "Generation", "Piece", "QueueFull"]
