"""TensorFlow Datasets without TensorFlow: prepared as array_record, decoded by our decoder."""

from __future__ import annotations

from typing import TYPE_CHECKING

from shared_vit.data.dataset import Dataset, fingerprint
from shared_vit.errors import UserError, nearest
from shared_vit.files import reason

if TYPE_CHECKING:
    import tensorflow_datasets as tfds

VAL_NAMES = ("validation", "val", "test")


class TfdsSplit:
    """The encoded images of a prepared split. A copy in another process opens the files anew."""

    def __init__(self, directory: str, split: str, image: str, label: str, name: str):
        self._where = (directory, split, image, label, name)
        self._open()

    def _open(self) -> None:
        import tensorflow_datasets as tfds

        directory, split, self._image, self._label, name = self._where
        self._name = f"{name}, split {split}"
        builder = tfds.builder_from_directory(directory)
        self._source = builder.as_data_source(
            split, decoders={self._image: tfds.decode.SkipDecoding()}
        )

    def __reduce__(self) -> tuple[type[TfdsSplit], tuple[str, str, str, str, str]]:
        return TfdsSplit, self._where

    def __len__(self) -> int:
        return len(self._source)

    def read(self, index: int) -> tuple[bytes, int]:
        example = self._source[index]
        return bytes(example[self._image]), int(example[self._label])

    def where(self, index: int) -> str:
        return f"{self._name}, example {index}"


def tfds_dataset(name: str, data_dir: str | None) -> Dataset:
    """The data set `<name>[/<config>][:<version>]` of TFDS, in `data_dir` or TFDS's own default.

    Raises UserError for an unknown name, for one that is not prepared as array_record (with the
    command that prepares it), and for one without exactly one image and one class label, a training
    split and a validation split.
    """
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core import registered

    prepare = (
        f'python -c "import tensorflow_datasets as tfds; tfds.builder({name!r}, '
        f"data_dir={data_dir!r}, file_format='array_record').download_and_prepare()\""
    )
    try:
        builder = tfds.builder(name, data_dir=data_dir)
    except registered.DatasetNotFoundError as error:
        known = tfds.list_builders(with_community_datasets=False)
        raise UserError(
            f"TFDS has no data set {name!r}{nearest(name, known)} (--data=tfds:{name})"
        ) from error
    except (ValueError, AssertionError) as error:  # unknown config or version
        raise UserError(f"--data=tfds:{name}: {reason(error)}") from error
    splits = dict(builder.info.splits)
    if not splits:
        raise UserError(
            f"--data=tfds:{name} is not prepared in {builder.data_dir}. Prepare it (this may need "
            f"TensorFlow; reading it does not) with\n  {prepare}"
        )
    if "train" not in splits or not splits["train"].num_examples:
        raise UserError(
            f"--data=tfds:{name} has no split train; it has {', '.join(sorted(splits))}"
        )
    val = next((v for v in VAL_NAMES if v in splits and splits[v].num_examples), None)
    if val is None:
        raise UserError(
            f"--data=tfds:{name} has none of the splits {', '.join(VAL_NAMES)} to validate on"
        )
    image, label = _features(builder, name)
    try:
        train_split, val_split = [
            TfdsSplit(str(builder.data_dir), s, image, label, f"tfds:{name}")
            for s in ("train", val)
        ]
    except NotImplementedError as error:
        raise UserError(
            f"--data=tfds:{name} is prepared in {builder.data_dir} in a format without random "
            f"access ({builder.info.file_format}). Prepare it again, in another data_dir, with\n"
            f"  {prepare}"
        ) from error
    content = [
        f"{split} {info.num_examples} {info.num_bytes} {list(info.shard_lengths)}"
        for split, info in sorted(splits.items())
    ]
    return Dataset(
        name=f"tfds:{name}",
        train=train_split,
        val=val_split,
        class_names=list(builder.info.features[label].names),
        fingerprint=fingerprint(
            builder.info.full_name.encode(), *(line.encode() for line in content)
        ),
    )


def _features(builder: tfds.core.DatasetBuilder, name: str) -> tuple[str, str]:
    """Keys of the one image and of the one class label."""
    import tensorflow_datasets as tfds

    features = builder.info.features
    images = [k for k, f in features.items() if isinstance(f, tfds.features.Image)]
    labels = [k for k, f in features.items() if isinstance(f, tfds.features.ClassLabel)]
    if len(images) != 1 or len(labels) != 1:
        raise UserError(
            f"--data=tfds:{name}: expected one image and one class label per example, found images "
            f"{images} and labels {labels} among the features {sorted(features)}"
        )
    return images[0], labels[0]
