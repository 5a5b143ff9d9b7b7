"""`twinvit predict` and `embed`: classes and features of images by either twin."""
