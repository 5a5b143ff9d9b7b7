"""The one question that the model asks about the device: is it an NVIDIA GPU, and which?"""

import jax


def nvidia_gpu() -> jax.Device | None:
    """The first device, if it is an NVIDIA GPU; asked while a program is traced."""
    device = jax.devices()[0]
    if device.platform != "gpu" or "rocm" in device.client.platform_version:
        return None
    return device
