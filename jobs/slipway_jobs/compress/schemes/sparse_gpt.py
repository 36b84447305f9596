"""sparseGpt: weights removed column by column, the others adjusted to keep the layer's output (arXiv:2301.00774)."""

from __future__ import annotations

from slipway_api.compression import SchemeName
from slipway_jobs.compress.schemes.base import SchemeJob
from slipway_jobs.compress.schemes.oneshot import calibrate_and_save
from slipway_jobs.compress.schemes.pruning import PruningScheme


class SparseGptScheme(PruningScheme):
    """Second-order pruning."""

    name: SchemeName = "sparseGpt"

    def write(self, job: SchemeJob) -> None:
        """Calibrate, prune and save."""
        from llmcompressor.modifiers.pruning import SparseGPTModifier  # noqa: PLC0415

        self.check(job)
        modifier = SparseGPTModifier(sparsity=self.sparsity, mask_structure=self.mask_structure, ignore=job.ignored)
        calibrate_and_save(job, [modifier])
