"""The one error of this package: an argument outside its domain."""


class InvalidInputError(ValueError):
    """An argument outside its domain: ``review_share=1.4: must be in [0, 1]``."""


def require(holds: object, name: str, value: object, allowed: str) -> None:
    """Raise `InvalidInputError` naming the argument, its value and what is allowed."""
    if not holds:
        raise InvalidInputError(f"{name}={value!r}: must be {allowed}")
