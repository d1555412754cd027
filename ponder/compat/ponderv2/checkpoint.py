"""PonderV2's checkpoints; see `ponder.train.ponderv2.weights`, which the trainer uses too."""

from ponder.train.checkpoint import CheckpointError
from ponder.train.ponderv2.weights import LoadReport, load_checkpoint, read_weights, save_checkpoint

__all__ = ["CheckpointError", "LoadReport", "load_checkpoint", "read_weights", "save_checkpoint"]
