"""Corrections for looking often: over many signals at once (Holm, Benjamini-Hochberg) and over time (`e_detector`)."""
