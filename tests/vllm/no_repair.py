"""The bug of vLLM 0.32 on a CPU as it is without our repair: a tied head keeps its old weights."""

from __future__ import annotations

from torch import nn

from services.generator.vllm_worker import VersionLoader


class Unrepaired(VersionLoader):
    """Loads without packing the tied head again."""

    def repair(self, model: nn.Module) -> None:
        """Do nothing."""
