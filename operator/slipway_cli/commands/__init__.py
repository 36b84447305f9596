"""One module for each command. Each has `run(arguments, environment)`, which returns the exit status."""
