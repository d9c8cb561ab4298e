"""The base of all errors that a person can mend."""


class UserError(ValueError):
    """Something that a person can mend: a file, a setting or an argument.

    The message says what is wrong, which value was found and what to do. The CLI prints it alone and exits with code 2;
    every other exception is a bug and keeps its traceback.
    """
