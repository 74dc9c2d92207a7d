"""What everything stands on, and nothing of models: plain errors (`errors`), checks of options (`options`), numbers
free of their constraints (`unconstrained`), random state, a bar of progress; a run on disk as one file that is whole
or refused (`run_folder`), and its record read by a schema (`records`). Knows torch and the disk; imports nothing of
the house.
"""

from .lazy import lazily

__getattr__, __dir__, __all__ = lazily(
    __name__,
    {
        "errors": "ConvergenceWarning DataError FitError HasNetworks ModelError NotConjugate OptionError RegistryError "
        "RunError warn",
        "options": "check_counts check_device check_options check_seed row_weights",
        "progress": "Progress",
        "records": "read_as",
        "rng": "forked",
        "run_files": "has_run",
        "run_folder": "read_run write_run",
        "unconstrained": "free_param values_of",
    },
)
