"""Data of a run: sources -> documents -> tokens -> shards, cached by content, and the order they are read in.

`prepare` makes the data once, `PreparedData.load` opens it on every rank, `order` says which sequence comes when.
"""

from slipway_jobs.data.evaluation import EvalBatch, eval_batches
from slipway_jobs.data.prepare import PreparedData, prepare
from slipway_jobs.data.shards import TokenDataset
from slipway_jobs.data.tokenizer import check_vocabulary

__all__ = ["EvalBatch", "PreparedData", "TokenDataset", "check_vocabulary", "eval_batches", "prepare"]
