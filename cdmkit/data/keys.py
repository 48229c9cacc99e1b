"""Many short names in little memory: a Python string of its own for each of a million would take a hundred megabytes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import overload

import numpy as np
import numpy.typing as npt


class Keys(Sequence[str]):
    """The keys of a shard's samples. Equal to any sequence of the same strings."""

    def __init__(self, text: bytes) -> None:
        """text: every key, followed by a zero byte."""
        self.text = text
        self._ends: npt.NDArray[np.int64] = np.flatnonzero(np.frombuffer(text, np.uint8) == 0)
        if len(text) and text[-1]:
            raise ValueError("the last key has no end")

    @classmethod
    def of(cls, keys: Sequence[str]) -> Keys:
        """Those of a list. A zero byte within a key, which no file system knows, is left out."""
        return cls(b"".join(key.replace("\0", "").encode("utf-8", "surrogateescape") + b"\0" for key in keys))

    def __len__(self) -> int:
        return len(self._ends)

    @overload
    def __getitem__(self, index: int) -> str: ...

    @overload
    def __getitem__(self, index: slice) -> list[str]: ...

    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self[each] for each in range(*index.indices(len(self)))]
        row = range(len(self))[index]
        start = int(self._ends[row - 1]) + 1 if row else 0
        return self.text[start : int(self._ends[row])].decode("utf-8", "surrogateescape")

    def __iter__(self) -> Iterator[str]:
        return (key.decode("utf-8", "surrogateescape") for key in self.text.split(b"\0")[:-1])

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Keys):
            return self.text == other.text
        return list(self) == list(other) if isinstance(other, Sequence) else NotImplemented

    __hash__ = None  # type: ignore[assignment]  # as a list
