"""Every error a user can meet.

SsdLoopError                 exit code 1: a stage or the environment failed
├── ConfigError              exit code 2: bad settings or input (also a ValueError)
│   ├── StaleOutputError     finished work was made with other settings or inputs
│   └── RunLockedError       another process is writing this run
├── BadArtifactError         a stored file is missing, torn or altered
├── StageFailedError         a stage ended without a result
└── SandboxUnavailableError  generated code cannot be isolated on this machine

The text of an error is one sentence: the value, where it came from, what to do. The command line prints
it as the last line of standard error and exits with ``exit_code``.
"""


class SsdLoopError(Exception):
    """A stage or the environment failed."""

    exit_code = 1


class ConfigError(SsdLoopError, ValueError):
    """Settings or input that cannot be used."""

    exit_code = 2


class StaleOutputError(ConfigError):
    """Finished work exists, but was made with other settings or inputs."""


class RunLockedError(ConfigError):
    """Another process is writing this run."""


class BadArtifactError(SsdLoopError):
    """A stored file is missing, torn or altered."""


class StageFailedError(SsdLoopError):
    """A stage ended without a usable result."""


class SandboxUnavailableError(SsdLoopError):
    """Generated code cannot be isolated on this machine."""
