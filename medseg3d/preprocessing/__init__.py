"""From a raw case to what networks see: crop, normalize, resample, store."""
