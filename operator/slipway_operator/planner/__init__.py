"""Does a job fit, before anything is started? Pure arithmetic over the spec and the configured pools."""
