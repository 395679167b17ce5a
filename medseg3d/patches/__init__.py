"""From stored cases to training batches: where patches lie, how they are augmented, and how they are read ahead of time."""
