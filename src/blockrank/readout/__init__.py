"""From captured queries and keys to scores: the read-out, its kernel, and documents that leave early."""
