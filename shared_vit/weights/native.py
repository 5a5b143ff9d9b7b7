"""This project's own weight file: one `.safetensors` of canonical arrays whose metadata holds the ModelConfig.

No time stamps: equal weights are equal files. Written aside and renamed, so that a file is whole or absent.
"""
