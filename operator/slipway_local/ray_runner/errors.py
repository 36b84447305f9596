"""What can go wrong in the runner, by what is to be done about it."""

from __future__ import annotations


class RunnerError(Exception):
    """The root of the runner's errors."""


class InvalidSpec(RunnerError):  # noqa: N818 - reads as what it says about the object
    """A RayJob or RayService that can never run here as it is.

    `path` is the field's, `problem` says what is wrong and what to do.
    """

    def __init__(self, path: str, problem: str) -> None:
        super().__init__(f"{path}: {problem}" if path else problem)
        self.path = path
        self.problem = problem


class MissingReference(RunnerError):  # noqa: N818
    """A Secret or ConfigMap that is named is not there (yet)."""


class RayUnavailable(RunnerError):  # noqa: N818
    """Ray does not answer; whether it did what was asked is not known."""


class SubmissionRefused(RunnerError):  # noqa: N818
    """Ray will not take this job as it is."""


class ConfigRefused(RunnerError):  # noqa: N818
    """Ray Serve will not take this configuration as it is; what ran before still runs."""


class RayStartFailed(RunnerError):  # noqa: N818
    """The local Ray head did not come up."""
