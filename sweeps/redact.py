"""Secrets stay out of what people and files get to see: whatever is printed or kept passes here first."""

import re
from typing import Any

HIDDEN = "***"
PASSWORD = re.compile(r"(://[^\s/:@\"'<>]*:)[^\s\"'<>]*@")  # up to the last @ of the word: passwords may hold / and @
SPACED_PASSWORD = re.compile(  # one with spaces or quotes, up to the @ before the host; a port is none
    r"(://[^\s/:@\"'<>]*:)(?!\d*(?:[/\s\"'<>,;.)]|$)|\*\*\*@)[^\n]*?@(?=[\w.\-\[\]:]+(?:[/?\s\"'<>,;)]|$))"
)
TOKEN_LOGIN = re.compile(r"(https?://)[^\s/:@\"'<>]+@")  # https://TOKEN@host
PARAMETER = re.compile(  # in a query, between spaces as libpq has it, or URL-encoded as for ODBC; quoted values whole
    r"((?:[?&;\s\"']|^|%(?:3B|3F|26|20))(?:\w*password|\w*passwd|pwd|\w*token|\w*secret|api_?key)\s*)"
    r"(?:(=\s*)(?:'(?:\\.|[^'\\])*'|\"(?:\\.|[^\"\\])*\"|\{[^}]*\}|[^&;\s\"'<>]+)"
    r"|(%3D)(?:%7B.*?%7D|(?:(?!%3B|%26)[^&;\s\"'<>])+))",
    re.IGNORECASE,
)
SECRET_NAME = re.compile(r"(?:^|_)(?:password|passwd|secret|api_?key|access_?key|auth_?token)$", re.IGNORECASE)


def hide_secrets(text: str) -> str:
    """`text` with the passwords and tokens of every address in it replaced by ***."""
    for pattern in (PASSWORD, SPACED_PASSWORD, TOKEN_LOGIN):
        text = pattern.sub(rf"\g<1>{HIDDEN}@", text)
    return PARAMETER.sub(lambda found: f"{found[1]}{found[2] or found[3]}{HIDDEN}", text)


def redacted(tree: Any) -> Any:
    """A copy of plain containers that may be shown and kept: no address with a password, no value of a key named like a secret."""
    if isinstance(tree, dict):
        return {k: HIDDEN if SECRET_NAME.search(str(k)) and v is not None else redacted(v) for k, v in tree.items()}
    if isinstance(tree, (list, tuple)):
        return [redacted(item) for item in tree]
    return hide_secrets(tree) if isinstance(tree, str) else tree
