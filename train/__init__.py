"""Stage 2: sets of cached features, and the Transformer head that points at the anomaly."""
