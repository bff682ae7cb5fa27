"""What a workspace is put back to: the state of each of its names, in few bytes.

There may be a hundred thousand inputs, and a workspace for each slot. The names are the same in
all workspaces of a batch and are kept once; of each name a workspace keeps 36 bytes.
"""

from __future__ import annotations

import stat
import struct
import threading
from collections.abc import Iterator, Mapping

from adr.worker.tree import Entry

__all__ = ["Baseline", "Names"]

#: Type and permissions, size, times and inode; without a type there is no such name.
_STATE = struct.Struct("<IqqqQ")
_MODE = struct.Struct("<I")


class Names(dict[str, int]):
    """Number the names that occur in workspaces; thread-safe."""

    def __init__(self) -> None:
        super().__init__()
        self._guard = threading.Lock()

    def number(self, name: str) -> int:
        """Return the number of a name, which gets one if it has none."""
        with self._guard:
            return self.setdefault(name, len(self))


class Baseline(Mapping[str, Entry]):
    """Keep a state of each name of one workspace.

    Not thread-safe.

    Parameters
    ----------
    names : Names, optional
        Shared with others that have the same names.
    """

    def __init__(self, names: Names | None = None) -> None:
        self._names = Names() if names is None else names
        self._states = bytearray()
        self._length = 0
        self._count = 0
        #: What does not fit into a state: targets of links, times of other centuries.
        self._odd: dict[int, Entry] = {}

    def __getitem__(self, name: str) -> Entry:
        """Return the state of a name."""
        number = self._names.get(name)
        if number is None or number >= self._length:
            raise KeyError(name)
        if number in self._odd:
            return self._odd[number]
        numbers = _STATE.unpack_from(self._states, number * _STATE.size)
        if not numbers[0]:
            raise KeyError(name)
        return Entry(*numbers)

    def __setitem__(self, name: str, entry: Entry) -> None:
        """Keep the state of a name; any has a type."""
        number = self._names.number(name)
        place = number * _STATE.size
        if number >= self._length:
            self._states.extend(bytes(place + _STATE.size - len(self._states)))
            self._length = number + 1
        self._count += not _MODE.unpack_from(self._states, place)[0]
        *numbers, target = entry
        try:
            _STATE.pack_into(self._states, place, *numbers)
            fits = not target
        except struct.error:
            _MODE.pack_into(self._states, place, entry.mode)
            fits = False
        if fits:
            self._odd.pop(number, None)
        else:
            self._odd[number] = entry

    def __iter__(self) -> Iterator[str]:
        """Yield the names."""
        return (name for name, _ in self._modes())

    def __len__(self) -> int:
        """Return how many names there are."""
        return self._count

    def folders(self) -> Iterator[tuple[str, Entry]]:
        """Yield the directories among them, faster than by looking at each."""
        return ((name, self[name]) for name, mode in self._modes() if stat.S_ISDIR(mode))

    def _modes(self) -> Iterator[tuple[str, int]]:
        # A list is made in one step, whoever adds names meanwhile.
        for name, numbers in zip(list(self._names), _STATE.iter_unpack(self._states), strict=False):
            if numbers[0]:
                yield name, numbers[0]
