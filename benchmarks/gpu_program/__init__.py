"""The programs that XLA writes for a GPU, compiled and read on a machine that has none."""
