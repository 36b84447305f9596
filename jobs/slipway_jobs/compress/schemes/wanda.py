"""wanda: weights removed row by row, by |weight| x norm of the input feature (arXiv:2306.11695)."""

from __future__ import annotations

from slipway_api.compression import SchemeName
from slipway_jobs.compress.schemes.base import SchemeJob
from slipway_jobs.compress.schemes.oneshot import calibrate_and_save
from slipway_jobs.compress.schemes.pruning import PruningScheme


class WandaScheme(PruningScheme):
    """Pruning by weight and activation."""

    name: SchemeName = "wanda"

    def write(self, job: SchemeJob) -> None:
        """Calibrate, prune and save."""
        from llmcompressor.modifiers.pruning import WandaPruningModifier  # noqa: PLC0415

        self.check(job)
        modifier = WandaPruningModifier(sparsity=self.sparsity, mask_structure=self.mask_structure, ignore=job.ignored)
        calibrate_and_save(job, [modifier])
