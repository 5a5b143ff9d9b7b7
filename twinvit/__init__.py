"""What knows both frameworks: proofs that the twins are the same, conversion, the `twinvit`
command."""

import torch_vit  # noqa: F401 - registers the reader of .pth files; imports no framework
from shared_vit.version import __version__

__all__ = ["__version__"]
