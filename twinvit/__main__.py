"""`python -m twinvit` is the `twinvit` command."""

from twinvit.cli import main

main()
