"""Programs of either twin in a file that runs without this package: `twinvit export`.

`write` makes and checks them, `read` runs them; a module for each target says how.
"""
