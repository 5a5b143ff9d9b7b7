"""Programs for ONNX, made from the PyTorch twin's, and run by onnxruntime."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch

from twinvit.programs.target import BATCH, INPUT, Run
from twinvit.programs.to_torch import TorchTwin

_FOLDER = "session.model_external_initializers_file_folder_path"


class OnnxTwin(TorchTwin):
    """The PyTorch twin, exported by way of its `torch.export` program."""

    def write(self, file: BinaryIO) -> dict[str, object]:
        with warnings.catch_warnings(), _quiet("torch.onnx"):
            warnings.simplefilter("ignore")  # of torch and onnxscript, about their internals
            program = torch.onnx.export(
                self.exported(),
                dynamo=True,
                verbose=False,
                input_names=[INPUT],
                output_names=[self.options.output],
                dynamic_shapes=None if self.options.batch_size else {INPUT: {0: BATCH}},
            )
            opset = program.model.opset_imports[""]
            if self.options.data is None:
                file.write(program.model_proto.SerializeToString())
            else:
                _write_beside(program, file, self.options.data)
        return {"opset": opset}


twin = OnnxTwin


def _write_beside(program: torch.onnx.ONNXProgram, file: BinaryIO, data: Path) -> None:
    """The program to `file`, its weights to `data`, which it names without a folder."""
    own = data.with_suffix("")
    program.save(own, external_data=True)
    if not data.is_file():
        raise RuntimeError(f"torch.onnx wrote no {data.name} next to {own.name}")
    file.write(own.read_bytes())


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


def load(file: BinaryIO, folder: Path | None = None) -> Run:
    """The program of an `.onnx` file, by onnxruntime on the CPU; folder: of its data file."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    if folder is not None:
        options.add_session_config_entry(_FOLDER, str(folder))
    session = onnxruntime.InferenceSession(file.read(), options, providers=["CPUExecutionProvider"])
    return lambda images: session.run(None, {INPUT: np.ascontiguousarray(images)})[0]
