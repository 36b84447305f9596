"""Drift: has the traffic of a served model left the data that the model was made from?

The statistics and the decision, nothing else: no Ray, no HTTP, no Kubernetes, no files but the profile's. The way of a
request: `features` turns it into a few numbers, `windows` adds those to summaries of fixed size (`sketches`),
`detector` compares each full window with the `profile` of the reference by the tests in `statistics` and `streams`, and
raises an alarm only where the evidence holds up over all signals and over time (`corrections`) *and* the effect is
large enough to matter. What counts as large is learnt by drawing the reference against itself (`calibration`).
"""
