"""The drift watcher: captured traffic of one version in, verdicts, snapshots of examples and a report out. No Ray.

`reference` finds or builds the profile, `judges` compare windows with it, `examples` keeps texts for retrains,
`store` makes all of it survive the process, `page` shows it; `watcher` is the order in which that happens.
"""
