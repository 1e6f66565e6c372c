"""What can go wrong, as a tree of exceptions a person can act on.

    ForkpointError            everything the package raises on purpose
    ├── ConfigError           a key, a value or a combination of settings
    ├── DataError             a file, a column, an empty or unreadable data set
    ├── ModelError            a checkpoint, a tokenizer, an unsupported architecture
    ├── RewardError           a verifier that raised, hung or returned nonsense
    ├── SelectionError        no token to select from
    ├── NumericalError        a non-finite logit, loss or gradient, again and again
    ├── UserCodeError         a rule or an engine of the user's that failed
    ├── EngineError           the servers that sample: none is left, or they refuse
    ├── RunError              the run directory or a checkpoint in it
    └── Interrupted           SIGTERM or Ctrl-C: not a fault, the run can be resumed

Each message says what is wrong, where, and what to do next. The command line prints it in one
line and exits with 2; a traceback is kept for faults of ours.
"""


class ForkpointError(Exception):
    """Base of all errors that are meant for the user."""


class ConfigError(ForkpointError):
    """A setting that cannot be."""


class DataError(ForkpointError):
    """Prompts that cannot be read."""


class ModelError(ForkpointError):
    """A model or tokenizer that cannot be used."""


class RewardError(ForkpointError):
    """A reward function that cannot be used at all (one failing sample is data, not an error)."""


class SelectionError(ForkpointError):
    """A selection that has nothing to choose from."""


class NumericalError(ForkpointError):
    """Non-finite numbers several steps in a row."""


class UserCodeError(ForkpointError):
    """A selection rule or an engine of the user's that raised, or an engine that gave nonsense."""


class EngineError(ForkpointError):
    """Servers that sample and cannot: none is left, or a request is refused."""


class RunError(ForkpointError):
    """A run directory or checkpoint that cannot be written or read."""


class Interrupted(ForkpointError):
    """A stop was asked for; state up to the last whole step is saved."""
