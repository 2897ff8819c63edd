"""Every error a user can meet, drawn as a tree; the class decides the exit code.

    OptimizeError
      UserError 2          the input, the data or the command line is wrong
        ModelError           not a model we can hold safely
        DataError            calibration or check inputs do not fit the model
        PipelineError        the pipeline text does not parse or names no pass
      UnavailableError 3   the target's runtime is not on this machine
      GateError 4          a limit was missed under --strict
      BugError 1           ours: a pass broke an invariant (comes with a reproducer)

The message says what happened, where, and what to do about it, in one line.
"""

from __future__ import annotations


class OptimizeError(Exception):
    """Root of the tree; `exit_code` is what the command line returns."""

    exit_code = 1


class UserError(OptimizeError):
    exit_code = 2


class ModelError(UserError):
    pass


class DataError(UserError):
    pass


class PipelineError(UserError):
    pass


class UnavailableError(OptimizeError):
    exit_code = 3


class GateError(OptimizeError):
    exit_code = 4


class BugError(OptimizeError):
    exit_code = 1
