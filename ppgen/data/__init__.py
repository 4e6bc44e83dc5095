"""Data sets by name or path, split, checked, and drawn in batches."""

from ppgen.data.batches import Batches, Together, columns_to
from ppgen.data.datasets import Columns, Dataset
from ppgen.data.loading import found, load, names
from ppgen.data.streaming import Streamed

__all__ = ["Batches", "Columns", "Dataset", "Streamed", "Together", "columns_to", "found", "load", "names"]
