"""Generation: sampling responses token by token, with a key/value cache."""
