"""What can go wrong in training that its user can mend."""


class TrainerError(Exception):
    """The run cannot go on; the message says why and what to do."""


class DataError(TrainerError):
    """The data cannot be used; the message names the file and, where there is one, the line or column."""


class ConfigError(TrainerError):
    """A setting is unknown or out of its range; the message names it."""


class Diverged(TrainerError):
    """The loss is no longer a number, or least squares have no solution; the message says what to change."""


class StoppedEarly(TrainerError):
    """The user stopped a training before its first epoch was done."""
