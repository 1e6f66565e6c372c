"""DAPO's soft overlong punishment (2503.14476, Eq. 13)."""


def overlong_penalty(length: int, *, limit: int, buffer: int, penalty: float) -> float:
    """0 up to ``limit - buffer`` tokens, then linearly down to ``-penalty`` at ``limit``:

        penalty * min(0, ((limit - buffer) - length) / buffer)

    Args:
        length: tokens of the completion.
        limit: most tokens a completion can have.
        buffer: tokens before the limit where the punishment starts; 0: none.
    """
    if buffer == 0:
        return 0.0
    return penalty * min(0.0, (limit - buffer - length) / buffer)
