"""Set-up for every test: one torch thread, eight CPU devices for JAX, float64 only where a test
asks for it, and programs of JAX compiled without the optimizer of machine code."""

import gc
import os
import sys

import jax
import pytest
import shared_programs
import torch

# A step of a model of the tests takes a hundred times as long to compile as to compute; without
# these two passes half as long. They change no operation and no type of a program. Set before the
# first program, and for the trainers that tests start; XLA_FLAGS= keeps XLA's defaults, as does
# `make test-slow`.
QUICK_TO_COMPILE = "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false"

os.environ.setdefault("XLA_FLAGS", QUICK_TO_COMPILE)
gc.freeze()  # what stands at the start is not looked through again
gc.set_threshold(50_000, 20, 50)  # programs are traced a sixth faster
torch.set_num_threads(1)  # two threads on a busy machine can be several times slower than one
jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)

# The files that take longest, in this order: they begin first, so that no worker of
# `make test` is left with one of them at the end.
LONGEST = (
    "test_lockstep", "test_commands", "test_examples", "test_documents", "test_recipe_steps",
    "test_resume", "test_launch", "test_memory", "test_recipe_runs", "test_port_optimizer",
    "test_topology", "test_features", "test_family_training", "test_strangers",
    "test_weights_dtype", "test_finetune", "test_old_files", "test_port_transplant",
    "test_lockstep_plants", "test_weights_convert", "test_curves", "test_timm_family",
)  # fmt: skip


def pytest_addoption(parser):
    parser.addoption(
        "--imagenet",
        metavar="DIR",
        help="run the logits and curve claims on this ImageNet folder as well",
    )


def pytest_configure(config):
    # the same small step is compiled in many tests, and in the processes that they start
    if config.pluginmanager.hasplugin("cacheprovider"):
        directory = str(config.cache.mkdir("jax"))
        jax.config.update("jax_compilation_cache_dir", directory)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
        os.environ["JAX_COMPILATION_CACHE_DIR"] = directory


def pytest_collection_modifyitems(items):
    rank = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: rank.get(item.path.stem, len(rank)))


@pytest.fixture(autouse=True, scope="module")
def programs_of_one_file():
    """Trainers share them in a file of tests (`shared_programs.py`)."""
    if "jax_vit.trainer" in sys.modules:
        shared_programs.share()
    yield
    shared_programs.forget()


@pytest.fixture
def x64():
    """Float64 in JAX for one test; float32 tests run as users do, with x64 off."""
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", False)


@pytest.fixture(params=["fp32", "fp64"])
def precision(request):
    """A test run twice, in float32 and in float64."""
    if request.param == "fp64":
        request.getfixturevalue("x64")
    return request.param
