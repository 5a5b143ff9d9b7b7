"""From a data set to batches: sources, decoding, augmentation and the pipeline, the same for both twins."""

from shared_vit.data.batch import Batch
from shared_vit.data.pipeline import Dataset, batches, open_dataset

__all__ = ["Batch", "Dataset", "batches", "open_dataset"]
