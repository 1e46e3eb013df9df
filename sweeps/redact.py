"""Secrets stay out of what people and files get to see: whatever is printed or kept passes here first."""

import re
from typing import Any

HIDDEN = "***"
PASSWORD = re.compile(r"(://[^\s/:@\"'<>]*:)[^\s\"'<>]*@")  # up to the last @ of the word: passwords may hold / and @
TOKEN_LOGIN = re.compile(r"(https?://)[^\s/:@\"'<>]+@")  # https://TOKEN@host
PARAMETER = re.compile(r"([?&;](?:\w*password|\w*passwd|pwd|\w*token|\w*secret|api_?key)=)[^&;\s\"'<>]+", re.IGNORECASE)
SECRET_NAME = re.compile(r"(?:^|_)(?:password|passwd|secret|api_?key|access_?key|auth_?token)$", re.IGNORECASE)


def hide_secrets(text: str) -> str:
    """`text` with the passwords and tokens of every address in it replaced by ***."""
    for pattern in (PASSWORD, TOKEN_LOGIN):
        text = pattern.sub(rf"\g<1>{HIDDEN}@", text)
    return PARAMETER.sub(rf"\g<1>{HIDDEN}", text)


def redacted(tree: Any) -> Any:
    """A copy of plain containers that may be shown and kept: no address with a password, no value of a key named like a secret."""
    if isinstance(tree, dict):
        return {k: HIDDEN if SECRET_NAME.search(str(k)) and v is not None else redacted(v) for k, v in tree.items()}
    if isinstance(tree, (list, tuple)):
        return [redacted(item) for item in tree]
    return hide_secrets(tree) if isinstance(tree, str) else tree
