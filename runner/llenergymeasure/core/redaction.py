"""Takes credentials out of texts that leave the machine: log tails, error messages, status fields."""

import re

TOKENS = r"hf_[A-Za-z0-9]{20,}|sk-[A-Za-z0-9_-]{20,}|gh[pousr]_[A-Za-z0-9]{20,}|AKIA[0-9A-Z]{16}"
"""Shapes of access tokens; `keys` refuses them in files by the same list."""

_SECRET = re.compile(
    TOKENS + r"|eyJ[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]+"
    r"|(?<=://)[^/\s:@]+:[^/\s@]+(?=@)"
    r"|(?i:(?<=authorization: )|(?<=authorization:)|(?<=bearer ))\S{8,}"
)
_ASSIGNED = re.compile(
    r"(?i)\b([\w-]*(?:token|secret|password|passwd|api[_-]?key|access[_-]?key)[\w-]*\s*[=:]\s*['\"]?)([^\s'\",}]{8,})"
)


def redacted(text: str) -> str:
    """Give `text` with everything that looks like a credential replaced by ***."""
    return _ASSIGNED.sub(r"\1***", _SECRET.sub("***", text))
