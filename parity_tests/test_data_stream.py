"""Batch t is a pure function of (seed, data, batch size, t); epochs are complete."""

import gc
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from data_helpers import counting_dataset, digest, folder_run, image_folder, run_of, take

from shared_vit.cores import cores
from shared_vit.data import order
from shared_vit.data import workers as workers_module
from shared_vit.errors import UserError

COUNTING = run_of(2, batch_size=4, seed=5)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return image_folder(tmp_path_factory.mktemp("photos"))


def joined(parts: list) -> list[str]:
    """Digests of the batches whose rows are spread over processes: parts[p][t] -> one per t."""
    whole = []
    for of_step in zip(*parts):
        arrays = [
            np.concatenate([getattr(b, k) for b in of_step])
            for k in ("images", "labels", "weight", "rows")
        ]
        whole.append(type(of_step[0])(*arrays, step=of_step[0].step))
    return digest(whole)


def test_workers_do_not_change_a_byte(folder):
    run = folder_run(folder)
    expected = digest(take(run, 6))
    assert len(set(expected)) == 6
    for workers in (2, 3):
        assert digest(take(run.but(workers=workers), 6)) == expected


@pytest.mark.parametrize("split", ["train", "val"])
def test_the_number_of_processes_does_not_change_a_byte(folder, split):
    run = folder_run(folder)
    dataset = run.dataset()
    count = 6 if split == "train" else 2
    expected = digest(take(run, count, split=split, dataset=dataset))
    for of in (2, 4):
        parts = [
            take(run, count, split=split, process=p, num_processes=of, dataset=dataset)
            for p in range(of)
        ]
        assert all(len(b.rows) == 8 // of for part in parts for b in part)
        assert joined(parts) == expected


def test_a_resumed_stream_goes_on_with_the_same_bytes(folder):
    run = folder_run(folder)
    whole = digest(take(run, 9))
    assert digest(take(run, 4, start=5)) == whole[5:]
    other = run.but(workers=1)
    assert (
        joined([take(other, 2, start=7, process=p, num_processes=2) for p in range(2)]) == whole[7:]
    )


def test_the_seed_decides_order_and_crops(folder):
    run = folder_run(folder)
    assert digest(take(run, 1)) != digest(take(run.but(seed=4), 1))
    assert digest(take(run, 1)) == digest(take(run.but(seed=3), 1))
    labels = [
        tuple(np.concatenate([b.labels for b in take(COUNTING, 5, dataset=counting_dataset(20))]))
    ]
    for seed in (6, 2**63):
        changed = take(COUNTING.but(seed=seed), 5, dataset=counting_dataset(20))
        labels.append(tuple(np.concatenate([b.labels for b in changed])))
    assert len(set(labels)) == 3


def test_an_example_is_augmented_anew_each_epoch(folder):
    run = folder_run(folder, batch_size=21)
    first, second = take(run, 2)
    for label in range(3):
        one, other = first.images[first.labels == label], second.images[second.labels == label]
        assert not any(np.array_equal(a, b) for a in one for b in other)


FRAMEWORK = """
import sys
sys.path.insert(0, {tests!r})
import {framework}
from data_helpers import digest, folder_run, take
print(*digest(take(folder_run({folder!r}), 3)))
"""


@pytest.mark.parametrize("framework", ["torch_vit", "jax_vit"])
def test_both_twins_see_the_same_bytes(folder, framework):
    program = FRAMEWORK.format(
        tests=os.path.dirname(__file__), framework=framework, folder=str(folder)
    )
    found = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    ).stdout.split()
    assert found == digest(take(folder_run(folder), 3))


@pytest.mark.parametrize("batch_size", [1, 3, 4, 7, 50])
def test_an_epoch_is_every_example_once_and_runs_on_over_its_end(batch_size):
    examples, epochs = 23, 4
    run = COUNTING.but(batch_size=batch_size)
    found = take(run, -(-examples * epochs // batch_size), dataset=counting_dataset(examples))
    labels = np.concatenate([b.labels for b in found])[: examples * epochs].reshape(
        epochs, examples
    )
    assert all(sorted(epoch) == list(range(examples)) for epoch in labels)
    assert len({tuple(epoch) for epoch in labels}) == epochs
    assert all(b.images.shape == (batch_size, 2, 2, 3) and b.weight.all() for b in found)
    assert [b.step for b in found] == list(range(len(found)))


def test_orders_are_uniform():
    positions = np.zeros((8, 8))
    for seed in range(600):
        shuffled = order.ShuffleMapDataset(order.grain.MapDataset.range(8), seed)
        for position in range(8):
            positions[position, shuffled[position]] += 1
    chi_squared = ((positions - 75) ** 2 / 75).sum()
    assert chi_squared < 85.4  # 49 degrees of freedom: 0.1 % of uniform shuffles exceed this


@pytest.mark.parametrize(
    "examples, batch_size, of", [(5, 4, 1), (5, 4, 2), (5, 4, 4), (4, 4, 2), (3, 8, 4), (9, 6, 3)]
)
def test_an_evaluation_counts_every_example_once(examples, batch_size, of):
    run = COUNTING.but(batch_size=batch_size)
    dataset = counting_dataset(7, val=examples)
    parts = [
        list(run.batches("val", process=p, num_processes=of, dataset=dataset)) for p in range(of)
    ]
    assert {len(part) for part in parts} == {-(-examples // batch_size)}
    counted = [
        int(label) for part in parts for b in part for label, w in zip(b.labels, b.weight) if w
    ]
    assert sorted(counted) == list(range(examples))
    assert sorted(dataset.val.reads) == list(range(examples))  # padding decodes nothing
    assert all(
        (b.images[b.weight > 0][:, 0, 0, 0] == b.labels[b.weight > 0]).all()
        for part in parts
        for b in part
    )
    in_order = [b.labels[b.weight > 0] for step in zip(*parts) for b in step]
    assert np.concatenate(in_order).tolist() == list(range(examples))
    assert all(
        b.weight.dtype == np.float32 and b.images.shape[0] == batch_size // of
        for part in parts
        for b in part
    )


def test_a_process_reads_only_its_rows_and_a_resumed_one_only_what_follows():
    whole = np.concatenate([b.labels for b in take(COUNTING, 12, dataset=counting_dataset(1000))])
    dataset = counting_dataset(1000)
    one = order.train_chunks(
        lambda i, rng: order.Example(*dataset.train.read(i)),
        1000,
        5,
        order.Share(4, first=2, rows=2, start=10),
        2,
    )
    for chunk in range(2):
        one[chunk]
    assert dataset.train.reads == whole.reshape(12, 4)[10:, 2:].ravel().tolist()


def test_start_up_does_not_grow_with_the_step():
    dataset = counting_dataset(1000)
    take(COUNTING, 1, dataset=dataset)
    begin = time.perf_counter()
    batch = take(COUNTING, 1, start=10**12, dataset=dataset)[0]
    assert time.perf_counter() - begin < 20
    assert batch.step == 10**12 and len(dataset.train.reads) < 200


def test_what_a_batch_is(folder):
    batch = take(folder_run(folder), 1, process=1, num_processes=2)[0]
    assert batch.images.dtype == np.uint8 and batch.images.shape == (4, 24, 24, 3)
    assert (
        batch.labels.dtype == np.int32
        and batch.weight.dtype == np.float32
        and batch.rows.dtype == np.int64
    )
    assert batch.rows.tolist() == [4, 5, 6, 7]
    assert type(batch.images) is np.ndarray and batch.images.flags.owndata


def test_a_batch_that_processes_do_not_divide_is_an_error():
    with pytest.raises(UserError, match="--batch_size=4 is not divisible by 3"):
        COUNTING.batches(num_processes=3, dataset=counting_dataset(5))


@pytest.mark.parametrize("how", ["close", "collect"])
@pytest.mark.parametrize("workers", [0, 1])
def test_closing_ends_threads_and_processes(workers, how):
    def running() -> set:
        threads = {t for t in threading.enumerate() if t.name.startswith("grain-prefetch")}
        return threads | set(multiprocessing.active_children())

    before = running()
    found = run_of(8, batch_size=64, workers=workers).batches()
    next(found)
    started = running() - before
    assert len(started) >= max(workers, 1)
    if how == "close":
        found.close()
        with pytest.raises(StopIteration):
            next(found)
    else:
        del found
        gc.collect()
    until = time.perf_counter() + 30
    while started & running() and time.perf_counter() < until:
        time.sleep(0.05)
    assert not started & running()


KILLED = """
import multiprocessing, time
from data_helpers import run_of
if __name__ == "__main__":
    stream = run_of(8, batch_size=64, workers=1).batches()
    next(stream)
    print(*(p.pid for p in multiprocessing.active_children()), flush=True)
    time.sleep(60)
"""


@pytest.mark.skipif(not os.path.exists("/proc/self"), reason="reads /proc")
def test_workers_do_not_outlive_a_killed_training(tmp_path):
    script = tmp_path / "train.py"
    script.write_text(KILLED)
    here = os.path.dirname(__file__)
    env = os.environ | {"PYTHONPATH": os.pathsep.join((os.path.dirname(here), here))}
    command = [sys.executable, str(script)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=env)
    workers = [int(pid) for pid in process.stdout.readline().split()]
    assert len(workers) == 1
    process.send_signal(signal.SIGKILL)
    process.wait()
    until = time.perf_counter() + 30
    while any(os.path.exists(f"/proc/{pid}") for pid in workers) and time.perf_counter() < until:
        time.sleep(0.1)
    assert not any(os.path.exists(f"/proc/{pid}") for pid in workers)


def test_small_shared_memory_is_no_obstacle(monkeypatch, folder):
    from shared_vit.data import pipeline

    run = folder_run(folder)
    expected = digest(take(run, 3))
    monkeypatch.setattr(pipeline, "shared_memory_fits", lambda num_bytes: False)
    assert digest(take(run.but(workers=1), 3)) == expected


@pytest.mark.parametrize(
    "available, workers, photographs, expected",
    [(2, None, True, (0, 2)), (7, None, True, (0, 7)), (16, None, True, (4, 4)),
     (64, None, True, (16, 4)), (64, None, False, (0, 1)), (16, 0, True, (0, 16)),
     (16, 3, True, (3, 5)), (2, 5, True, (5, 1))],
)  # fmt: skip
def test_the_default_number_of_workers_follows_the_cores(
    monkeypatch, available, workers, photographs, expected
):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: range(available), raising=False)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    assert workers_module.plan(workers, photographs) == expected
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert cores() == max(1, available // 4)


def shifted_rows(monkeypatch):
    """A process that starts a row late."""
    chunk = order.Share.chunk
    monkeypatch.setattr(
        order.Share,
        "chunk",
        lambda self, n: (chunk(self, n)[0], range(chunk(self, n)[1].start + (self.first > 0), 8)),
    )


def local_randomness(monkeypatch):
    """Crops drawn by order of arrival rather than by global position."""
    real = order.train_chunks

    def train_chunks(load, num_examples, seed, *rest):
        rng = np.random.default_rng(seed)
        return real(lambda index, _: load(index, rng), num_examples, seed, *rest)

    monkeypatch.setattr(order, "train_chunks", train_chunks)


@pytest.mark.parametrize("fault", [shifted_rows, local_randomness])
def test_the_comparison_notices(monkeypatch, folder, fault):
    run = folder_run(folder)
    expected = digest(take(run, 2))
    fault(monkeypatch)
    parts = [take(run, 2, process=p, num_processes=2) for p in range(2)]
    assert joined(parts) != expected
