"""The statistics of drift, one per file: each compares a reference with a window and knows nothing of either's origin.

Each file has two entrances: from raw values, and from counts in shared bins (what mergeable summaries can give). Values
that are not finite are left out by the caller's leave, never silently: `finite` says how many there were.
"""
