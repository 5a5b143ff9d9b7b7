"""Programs for ONNX, made from the PyTorch twin's, and run by onnxruntime."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO

import numpy as np
import torch

from twinvit.programs.target import BATCH, INPUT, OUTPUT, Run
from twinvit.programs.to_torch import TorchTwin


class OnnxTwin(TorchTwin):
    """The PyTorch twin, exported by way of its `torch.export` program."""

    def write(self, file: BinaryIO) -> dict[str, object]:
        with warnings.catch_warnings(), _quiet("torch.onnx"):
            warnings.simplefilter("ignore")  # of torch and onnxscript, about their own insides
            program = torch.onnx.export(
                self.exported(),
                dynamo=True,
                verbose=False,
                input_names=[INPUT],
                output_names=[OUTPUT],
                dynamic_shapes=None if self.options.batch_size else {INPUT: {0: BATCH}},
            )
            model = program.model_proto
        file.write(model.SerializeToString())
        return {"opset": model.opset_import[0].version}


twin = OnnxTwin


@contextmanager
def _quiet(name: str) -> Iterator[None]:
    """Without a logger's warnings: torch names the operators of a torchvision that is not here."""
    logger = logging.getLogger(name)
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


def load(file: BinaryIO) -> Run:
    """The program of an `.onnx` file, by onnxruntime on the CPU."""
    import onnxruntime

    session = onnxruntime.InferenceSession(file.read(), providers=["CPUExecutionProvider"])
    return lambda images: session.run([OUTPUT], {INPUT: np.ascontiguousarray(images)})[0]
