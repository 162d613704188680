"""A disk whose power can be cut: what was not synced may be lost, in any combination."""

from __future__ import annotations

import random
from pathlib import Path

from mlxfn.files import System


class PowerCut(System):
    """Make every call for real, and remember it so that the disk after a power cut can be made.

    LevelDB's fault injection drops everything unsynced; here a cut may also keep any part of it:
    a name without its data, a removal without the new file, half of what was written.

    Args:
        folder: The folder that is watched; what is in it now is safe.
    """

    def __init__(self, folder: Path) -> None:
        self.safe = {path.name: path.read_bytes() for path in folder.iterdir()}
        self.calls: list[tuple[str, str, bytes]] = []
        self._names: dict[int, str] = {}

    def create(self, path: Path) -> int:
        fd = super().create(path)
        self._names[fd] = path.name
        self.calls.append(("create", path.name, b""))
        return fd

    def write(self, fd: int, data: memoryview) -> int:
        done = super().write(fd, data)
        self.calls.append(("write", self._names[fd], bytes(data[:done])))
        return done

    def sync(self, fd: int) -> None:
        super().sync(fd)
        self.calls.append(("sync", self._names[fd], b""))

    def replace(self, source: Path, target: Path) -> None:
        super().replace(source, target)
        self.calls.append(("replace", source.name, target.name.encode()))

    def unlink(self, path: Path) -> None:
        super().unlink(path)
        self.calls.append(("unlink", path.name, b""))

    def sync_folder(self, folder: Path) -> None:
        super().sync_folder(folder)
        self.calls.append(("sync_folder", "", b""))

    def after(self, count: int, rng: random.Random | None) -> dict[str, bytes]:
        """Return the files there are if the power is cut after some calls.

        Args:
            count: How many calls were made.
            rng: Draws what is kept of the unsynced; None keeps nothing of it.
        """
        written = {name: bytearray(data) for name, data in self.safe.items()}
        synced = dict(self.safe)  # content by the name a file was made under
        files = {name: name for name in self.safe}  # that name by the present one
        durable, unsure = dict(files), []
        for call, name, more in self.calls[:count]:
            if call == "create":
                written[name], synced[name] = bytearray(), b""
            elif call == "write":
                written[name] += more
            elif call == "sync":
                synced[name] = bytes(written[name])
            if call in {"create", "replace", "unlink"}:
                unsure.append((call, name, more.decode()))
                _rename(files, *unsure[-1])
            elif call == "sync_folder":
                durable, unsure = dict(files), []
        for change in unsure:
            if rng is not None and rng.random() < 0.5:
                _rename(durable, *change)
        return {name: self._content(made, written, synced, rng) for name, made in durable.items()}

    @staticmethod
    def _content(
        made: str,
        written: dict[str, bytearray],
        synced: dict[str, bytes],
        rng: random.Random | None,
    ) -> bytes:
        least, most = len(synced[made]), len(written[made])
        length = least if rng is None else rng.choice([least, rng.randint(least, most), most])
        return bytes(written[made][:length])


def _rename(files: dict[str, str], call: str, name: str, target: str) -> None:
    if call == "create":
        files[name] = name
    elif call == "unlink":
        files.pop(name, None)
    else:  # the source may be unknown: its creation did not survive, its renaming did
        files[target] = files.pop(name, name)
