"""The student speaks: sampling token by token from a cache."""
