"""Gradients that differ where outputs agree: the operation whose backward is another one, and how
it is explained."""
