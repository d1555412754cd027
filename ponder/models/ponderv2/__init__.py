"""PonderV2's models: its configurations, parameters and batches."""

from ponder.models.ponderv2.build import build_model
from ponder.models.ponderv2.text import TextTable, make_text_table

__all__ = ["TextTable", "build_model", "make_text_table"]
