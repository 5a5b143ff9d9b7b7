"""From a data set to batches: sources, decoding, augmentation, order and the pipeline."""

from shared_vit.data.batch import Batch
from shared_vit.data.dataset import Dataset
from shared_vit.data.pipeline import batches
from shared_vit.data.preprocess import evaluation_input, normalize
from shared_vit.data.sources import open_dataset

__all__ = ["Batch", "Dataset", "batches", "evaluation_input", "normalize", "open_dataset"]
