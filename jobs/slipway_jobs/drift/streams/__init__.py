"""Detectors that look at every value of a stream, one at a time, in memory that does not grow with it."""
