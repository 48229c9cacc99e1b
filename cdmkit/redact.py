"""Keeping secrets out of what is written down."""

from __future__ import annotations

import re

_HIDDEN = "***"
_USERINFO = re.compile(r"(?<=://)[^/\s@\"']+(?=@)")
_WORDS = r"signature|sig|token|secret|password|passwd|credential|accesskeyid|access_key|api_?key|key"
_QUERY = re.compile(rf"([?&;](?:[\w.-]*[-_.])?(?:{_WORDS})=)[^&\s\"'#]+", re.IGNORECASE)
_OPTION = re.compile(rf"((?<!\S)--?(?:[\w.-]*[-_.])?(?:{_WORDS})[= ])[^\s\"']+", re.IGNORECASE)


def redact(text: str) -> str:
    """The text without users and passwords in URLs, signed queries (`?X-Amz-Signature=...`, `&token=...`) and options such as `--token`."""
    text = _USERINFO.sub(_HIDDEN, text)
    text = _QUERY.sub(rf"\1{_HIDDEN}", text)
    return _OPTION.sub(rf"\1{_HIDDEN}", text)
