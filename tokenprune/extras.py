"""How what an extra brings is installed, in the words of every message that asks for it."""


def install(extra: str) -> str:
    """The command for an extra: of the release, and where the code was checked out."""
    return f"pip install 'tokenprune-vlm[{extra}]' (in a checkout: pip install '.[{extra}]')"
