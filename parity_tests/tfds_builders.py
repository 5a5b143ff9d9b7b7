"""Data sets written by TFDS itself, in a module of their own because TFDS looks for one by name."""

import io

import numpy as np
import tensorflow_datasets as tfds
from data_helpers import encoded, photo


def examples(split: str, count: int) -> list[tuple[bytes, int]]:
    start = 0 if split == "train" else 100
    return [(encoded(photo(start + i, 20 + i, 31)), i % 3) for i in range(count)]


class TwinvitPhotos(tfds.core.GeneratorBasedBuilder):
    """Fourteen training images and five to test on."""

    VERSION = tfds.core.Version("1.2.0")
    SPLITS = {"train": 14, "test": 5}
    LABELS = ("crab", "newt", "yak")

    def _info(self):
        features = {
            "image": tfds.features.Image(shape=(None, None, 3)),
            "label": tfds.features.ClassLabel(names=self.LABELS),
        }
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, manager):
        return {name: self._generate_examples(name, count) for name, count in self.SPLITS.items()}

    def _generate_examples(self, split, count):
        for i, (data, label) in enumerate(examples(split, count)):
            yield i, {"image": io.BytesIO(data), "label": label}


class TwinvitTrainOnly(TwinvitPhotos):
    SPLITS = {"train": 4}


class TwinvitUnlabelled(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        features = {"number": tfds.features.Scalar(dtype=np.int64)}
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, manager):
        return {"train": self._generate_examples(), "test": self._generate_examples()}

    def _generate_examples(self):
        yield 0, {"number": 1}


class TwinvitUnprepared(TwinvitPhotos):
    pass
