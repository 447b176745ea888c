"""What is compared, token by token: the dense reference and the chunked version that runs."""
