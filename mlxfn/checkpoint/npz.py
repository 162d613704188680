"""A sealed npz: one canonical byte string for a manifest and its arrays, and its strict reader.

The file is an ordinary uncompressed zip that ``numpy.load`` opens: ``manifest.json`` first, then
one ``.npy`` member for each array, every array at a multiple of 64 bytes. The archive comment,
which ends the file, holds the SHA-256 of every byte before the digest itself.

There is exactly one such file for given content: fixed dates, fixed header sizes (zip64 always),
no compression. The reader uses this. It takes the manifest's length from the one header whose
place is fixed, derives from the manifest where everything has to be, and compares every byte that
is not array data with what the writer would have put there. So no zip parser runs, nothing is
decompressed, no path is made from a name, and nothing is allocated by a size read from the file.
"""

from __future__ import annotations

import hashlib
import math
import struct
import zlib
from collections.abc import Iterable, Iterator

import attrs

from mlxfn.errors import CheckpointError

MANIFEST = "manifest.json"
_DIGEST = 64  # hexadecimal digits at the end of the file
_COMMENT = b"mlxfn sha256 "
_ALIGN = 64
_WIDE = 0xFFFFFFFF  # "see the zip64 field"
_VERSION = 45  # of the zip specification: the first with zip64
_UTF8 = 0x0800
_EPOCH = 0x21  # 1980-01-01 in the date format of MS-DOS
_LOCAL = struct.Struct("<4s5H3L2H")
_LOCAL_ZIP64 = struct.Struct("<HHQQ")
_FILLER = struct.Struct("<HH")
_FILLER_ID = 0x464D  # "MF"
_CENTRAL = struct.Struct("<4s6H3L5H2L")
_CENTRAL_ZIP64 = struct.Struct("<HHQQQ")
_END_ZIP64 = struct.Struct("<4sQ2H2L4Q")
_LOCATOR = struct.Struct("<4sLQL")
_END = struct.Struct("<4s4H2LH")
_HEAD = _LOCAL.size + len(MANIFEST) + _LOCAL_ZIP64.size


@attrs.frozen
class Spec:
    """What an array is, without its content."""

    name: str
    descr: str  # numpy's type string, such as "<f4"; it ends with the item size
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Size of the content in bytes."""
        return math.prod(self.shape) * int(self.descr[2:])


@attrs.frozen(eq=False)
class _Member:
    name: bytes
    prefix: bytes  # what comes before the content: numpy's header
    content: memoryview
    offset: int  # of its local header
    checksum: int  # CRC-32 of prefix and content

    @property
    def size(self) -> int:
        return len(self.prefix) + len(self.content)

    @property
    def start(self) -> int:
        return _start(self.name, self.offset)


def write(manifest: bytes, arrays: Iterable[tuple[Spec, memoryview]]) -> Iterator[memoryview]:
    """Yield the file piece by piece; the arrays' own memory is handed on, not copied.

    Args:
        manifest: The content of ``manifest.json``.
        arrays: Every array's description and content (flat bytes, C order, little endian).
    """
    digest = hashlib.sha256()
    for piece in _frame(manifest, arrays):
        digest.update(piece)
        yield piece
    yield memoryview(digest.hexdigest().encode())


def manifest_of(data: bytes) -> bytes:
    """Return the manifest of a file (or of its beginning) without checking anything else.

    Raises:
        CheckpointError: The beginning is not one of ours.
    """
    if len(data) < _HEAD or data[:4] != b"PK\3\4":
        raise damaged("it does not begin like a checkpoint")
    _, _, size, _ = _LOCAL_ZIP64.unpack_from(data, _HEAD - _LOCAL_ZIP64.size)
    if size > len(data) - _HEAD:
        raise damaged("it ends within its manifest")
    return data[_HEAD : _HEAD + size]


def manifest_end(head: bytes) -> int:
    """Return how many bytes of a file its manifest needs, from the first 63 of them or more.

    Raises:
        CheckpointError: The beginning is not one of ours.
    """
    if len(head) < _HEAD or head[:4] != b"PK\3\4":
        raise damaged("it does not begin like a checkpoint")
    return _HEAD + _LOCAL_ZIP64.unpack_from(head, _HEAD - _LOCAL_ZIP64.size)[2]


def check_digest(data: bytes) -> None:
    """Check the digest that ends a file.

    Raises:
        CheckpointError: Any byte differs from what was written, or some are missing.
    """
    view = memoryview(data)
    if data[-_DIGEST:] != hashlib.sha256(view[:-_DIGEST]).hexdigest().encode():
        raise damaged("its checksum does not match")


def read(data: bytes, manifest: bytes, specs: Iterable[Spec]) -> dict[str, memoryview]:
    """Return the content of every array, after checking every other byte of the file.

    Args:
        data: The whole file.
        manifest: Its manifest, as :func:`manifest_of` gives it.
        specs: The arrays that the manifest lists, in its order.

    Raises:
        CheckpointError: The file is not the one that :func:`write` makes of this content.
    """
    view = memoryview(data)
    contents: list[tuple[Spec, memoryview]] = []
    offset = _HEAD + len(manifest)
    for spec in specs:
        start = _start(_file_name(spec), offset) + len(_npy(spec))
        offset = start + spec.nbytes
        if offset > len(view):
            raise damaged("it is shorter than its arrays")
        contents.append((spec, view[start:offset]))
    at = 0
    for piece in _frame(manifest, contents):
        # A content is a slice of the file itself, at this very place.
        if piece.obj is not data and view[at : at + len(piece)] != piece:
            raise damaged("it is not laid out as its manifest says")
        at += len(piece)
    if at + _DIGEST != len(view):
        raise damaged("it is not as long as its manifest says")
    return {spec.name: content for spec, content in contents}


def damaged(why: str) -> CheckpointError:
    """Return the error for a file that is not what was once written."""
    return CheckpointError(f"the checkpoint is damaged: {why}")


def _frame(manifest: bytes, arrays: Iterable[tuple[Spec, memoryview]]) -> Iterator[memoryview]:
    """Yield everything but the digest."""
    directory = []
    end = 0
    for member in _members(manifest, arrays):
        yield memoryview(_local_header(member))
        yield memoryview(member.prefix)
        yield member.content
        directory.append(_central_header(member))
        end = member.start + member.size
    yield memoryview(_directory(directory, end))


def _members(manifest: bytes, arrays: Iterable[tuple[Spec, memoryview]]) -> Iterator[_Member]:
    yield _Member(MANIFEST.encode(), b"", memoryview(manifest), 0, zlib.crc32(manifest))
    offset = _HEAD + len(manifest)
    for spec, content in arrays:
        prefix = _npy(spec)
        checksum = zlib.crc32(content, zlib.crc32(prefix))
        member = _Member(_file_name(spec), prefix, content, offset, checksum)
        yield member
        offset = member.start + member.size


def _file_name(spec: Spec) -> bytes:
    return f"{spec.name}.npy".encode()


def _start(name: bytes, offset: int) -> int:
    """Where a member's bytes begin: right behind the manifest's header, aligned for arrays."""
    if not offset:
        return _HEAD
    unaligned = offset + _LOCAL.size + len(name) + _LOCAL_ZIP64.size + _FILLER.size
    return unaligned + -unaligned % _ALIGN


def _npy(spec: Spec) -> bytes:
    """Numpy's header, format 1.0; written here so that no numpy release changes our bytes."""
    text = f"{{'descr': '{spec.descr}', 'fortran_order': False, 'shape': {spec.shape}, }}"
    padding = -(10 + len(text) + 1) % _ALIGN
    return struct.pack("<6sBBH", b"\x93NUMPY", 1, 0, len(text) + padding + 1) + (
        text + " " * padding + "\n"
    ).encode("ascii")


def _local_header(member: _Member) -> bytes:
    extra = _LOCAL_ZIP64.pack(1, 16, member.size, member.size)
    if member.offset:  # a field without meaning brings the array to its place
        before = member.offset + _LOCAL.size + len(member.name) + len(extra) + _FILLER.size
        extra += _FILLER.pack(_FILLER_ID, member.start - before) + bytes(member.start - before)
    return (
        _LOCAL.pack(
            b"PK\3\4", _VERSION, _UTF8, 0, 0, _EPOCH, member.checksum, _WIDE, _WIDE,
            len(member.name), len(extra),
        )
        + member.name + extra
    )  # fmt: skip


def _central_header(member: _Member) -> bytes:
    extra = _CENTRAL_ZIP64.pack(1, 24, member.size, member.size, member.offset)
    return (
        _CENTRAL.pack(
            b"PK\1\2", 3 << 8 | _VERSION, _VERSION, _UTF8, 0, 0, _EPOCH, member.checksum,
            _WIDE, _WIDE, len(member.name), len(extra), 0, 0, 0, 0o100644 << 16, _WIDE,
        )
        + member.name + extra
    )  # fmt: skip


def _directory(headers: list[bytes], offset: int) -> bytes:
    entries = b"".join(headers)
    count = len(headers)
    end = _END_ZIP64.pack(
        b"PK\6\6", 44, 3 << 8 | _VERSION, _VERSION, 0, 0, count, count, len(entries), offset
    )
    locator = _LOCATOR.pack(b"PK\6\7", 0, offset + len(entries), 1)
    last = _END.pack(b"PK\5\6", 0, 0, 0xFFFF, 0xFFFF, _WIDE, _WIDE, len(_COMMENT) + _DIGEST)
    return entries + end + locator + last + _COMMENT
