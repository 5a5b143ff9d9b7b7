"""The processes of a certificate run in this one, which has the libraries imported already."""

import jax
import numpy as np
import peers  # noqa: F401 - makes torchvision importable

from shared_vit.errors import UserError
from twinvit.convert import certificate


def in_this_process(monkeypatch, tmp_path, twins=("torch", "jax")) -> None:
    """Let `certificate.certify` compute here; of the twins those that are named."""
    tasks = certificate._tasks

    def run(task):
        path = tmp_path / "outputs.npz"
        if task["run"] == "jax":
            jax.config.update("jax_enable_x64", task["precisions"] == ["fp64"])
        try:
            certificate._worker(task | {"out": str(path)})
        except Exception as error:  # as of a process that failed
            raise UserError(f"{type(error).__name__}: {error}") from error
        finally:
            jax.config.update("jax_enable_x64", False)
        found = {}
        with np.load(path) as arrays:
            for key in arrays:
                name, module = key.split("|")
                found.setdefault(name, {})[module] = arrays[key]
        return found

    def wanted(files):
        made, not_run = tasks(files)
        others = {"torch", "jax"} - set(twins)
        return [t for t in made if t["run"] not in others], not_run

    monkeypatch.setattr(certificate, "_run", run)
    monkeypatch.setattr(certificate, "_tasks", wanted)
