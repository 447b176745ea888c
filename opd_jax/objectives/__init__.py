"""The losses: divergences token by token (dense and in chunks), estimators, token weights and advantages."""
