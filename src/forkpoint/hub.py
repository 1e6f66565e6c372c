"""The Hugging Face hub: used where it can be reached, its cache where it cannot."""

TIMEOUT_S = 5.0


def prepare_hub() -> None:
    """Without a network, make the hub's libraries use what they have stored, at once.

    Left to themselves they try again five times for each file. From here on this process asks for
    the network no more, as with ``HF_HUB_OFFLINE=1``.
    """
    from huggingface_hub import constants, get_session

    if constants.is_offline_mode():
        return
    try:
        get_session().head(constants.ENDPOINT, timeout=TIMEOUT_S)  # any answer is good
    except Exception:  # no name server, no route, a proxy that refuses: of the client's own kinds
        constants.HF_HUB_OFFLINE = True
