"""TFDS data sets are read without TensorFlow; an unprepared one gets the command that helps."""

import importlib.util
import io
import os
import subprocess
import sys

import numpy as np
import pytest
from data_helpers import digest, run_of, take
from PIL import Image
from tfds_builders import TwinvitPhotos, TwinvitTrainOnly, TwinvitUnlabelled, examples

from shared_vit.data import evaluation_input
from shared_vit.errors import UserError

RUN = run_of(16, batch_size=6, seed=2)


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    place = str(tmp_path_factory.mktemp("tfds"))
    for builder in (TwinvitPhotos, TwinvitTrainOnly, TwinvitUnlabelled):
        builder(data_dir=place, file_format="array_record").download_and_prepare()
    return place


def opened(name: str, place: str):
    return RUN.but(data=f"tfds:{name}", data_dir=place).dataset()


def test_a_prepared_data_set_is_read_whole(data_dir):
    dataset = opened("twinvit_photos", data_dir)
    assert (len(dataset.train), len(dataset.val)) == (14, 5)
    assert dataset.class_names == ["crab", "newt", "yak"] and dataset.name == "tfds:twinvit_photos"
    for source, split, count in ((dataset.train, "train", 14), (dataset.val, "test", 5)):
        assert sorted(source.read(i) for i in range(count)) == sorted(
            examples(split, count)
        )  # the very bytes
    assert dataset.val.where(3) == "tfds:twinvit_photos, split test, example 3"


def test_its_pictures_are_those_of_our_decoder(data_dir):
    dataset = opened("twinvit_photos", data_dir)
    batch = take(RUN, 1, split="val", dataset=dataset)[0]
    assert batch.weight.tolist() == [1] * 5 + [0]
    for i in range(5):
        data, label = dataset.val.read(i)
        pixels = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
        assert np.array_equal(batch.images[i], evaluation_input(pixels, RUN.recipe.model))
        assert batch.labels[i] == label


def test_worker_processes_see_the_same_bytes(data_dir):
    dataset = opened("twinvit_photos", data_dir)
    expected = digest(take(RUN, 5, dataset=dataset))
    assert len(set(expected)) == 5
    assert digest(take(RUN.but(workers=1), 5, dataset=dataset)) == expected


def test_the_fingerprint_is_of_the_data_and_not_of_its_place(data_dir, tmp_path, monkeypatch):
    TwinvitPhotos(
        data_dir=str(tmp_path / "same"), file_format="array_record"
    ).download_and_prepare()
    first = opened("twinvit_photos", data_dir).fingerprint
    assert opened("twinvit_photos", str(tmp_path / "same")).fingerprint == first
    monkeypatch.setattr(TwinvitPhotos, "SPLITS", {"train": 13, "test": 5})
    TwinvitPhotos(
        data_dir=str(tmp_path / "less"), file_format="array_record"
    ).download_and_prepare()
    assert opened("twinvit_photos", str(tmp_path / "less")).fingerprint != first


@pytest.mark.skipif(
    importlib.util.find_spec("tensorflow") is not None, reason="TensorFlow is installed here"
)
def test_tensorflow_is_not_needed(data_dir):
    program = f"""
import sys
sys.path.insert(0, {os.path.dirname(__file__)!r})
from data_helpers import run_of, take
run = run_of(16, batch_size=6, seed=2, data="tfds:twinvit_photos", data_dir={data_dir!r})
print(take(run, 1)[0].images.sum(), "tensorflow" in sys.modules)
"""
    found = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    total, imported = found.stdout.split()
    assert (
        imported == "False"
        and int(total) == take(RUN, 1, dataset=opened("twinvit_photos", data_dir))[0].images.sum()
    )


def complaint(name: str, place: str) -> str:
    with pytest.raises(UserError) as caught:
        opened(name, place)
    return str(caught.value)


def test_an_unprepared_one_gets_the_command_that_prepares_it(data_dir):
    found = complaint("twinvit_unprepared", data_dir)
    assert (
        f"--data=tfds:twinvit_unprepared is not prepared in {data_dir}/twinvit_unprepared/1.2.0"
        in found
    )
    command = found.splitlines()[1].strip()
    assert command.startswith('python -c "') and "file_format='array_record'" in command
    exec(command.removeprefix('python -c "').removesuffix('"'))
    assert len(opened("twinvit_unprepared", data_dir).train) == 14


def test_another_file_format_gets_told_so(data_dir, monkeypatch):
    from tensorflow_datasets.core.dataset_info import DatasetInfo
    from tensorflow_datasets.core.file_adapters import FileFormat

    monkeypatch.setattr(DatasetInfo, "available_file_formats", lambda self: {FileFormat.TFRECORD})
    found = complaint("twinvit_photos", data_dir)
    assert (
        "without random access" in found
        and "file_format='array_record'" in found
        and "another data_dir" in found
    )


def test_what_is_not_there_is_named(data_dir):
    assert complaint("cifar_10", data_dir).startswith(
        "TFDS has no data set 'cifar_10'; did you mean 'cifar10'?"
    )
    assert "no_such_config" in complaint("twinvit_photos/no_such_config", data_dir)
    assert "none of the splits validation, val, test" in complaint("twinvit_train_only", data_dir)
    found = complaint("twinvit_unlabelled", data_dir)
    assert "one image and one class label" in found and "['number']" in found


def test_a_complaint_without_words_is_one_message(data_dir, monkeypatch):
    import tensorflow_datasets as tfds

    def builder(*_, **__):
        raise AssertionError

    monkeypatch.setattr(tfds, "builder", builder)
    assert complaint("twinvit_photos", data_dir) == "--data=tfds:twinvit_photos: AssertionError"


def test_a_bad_example_is_told_by_number(data_dir, monkeypatch):
    dataset = opened("twinvit_photos", data_dir)
    monkeypatch.setattr(type(dataset.val), "read", lambda self, index: (b"no image", 0))
    with pytest.raises(UserError, match="cannot decode tfds:twinvit_photos, split test, example 0"):
        take(RUN, 1, split="val", dataset=dataset)
