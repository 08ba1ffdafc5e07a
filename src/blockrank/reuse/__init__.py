"""Documents encoded once: the keys they are found by, and the store that holds them in memory."""
