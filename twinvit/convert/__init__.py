"""`twinvit convert`: weights between formats, with a certificate that the function is unchanged."""
