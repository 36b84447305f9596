"""Where a model comes from: the chain from data to the version that answers, from objects and their status."""
