"""Training: pure losses, candidate sampling, collation into the same packed layout, `transformers.Trainer` on top."""
