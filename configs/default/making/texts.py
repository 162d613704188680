"""Public-domain English, read out of two Debian packages and cleaned.

    r-cran-janeaustenr 1.0.0-1   the six novels of Jane Austen (public domain; package: MIT)
    sword-text-web 426.0-1       World English Bible (public domain)

`apt-get download r-cran-janeaustenr sword-text-web` brings both files; `CHECKSUMS` says
which ones were used.
"""

import hashlib
import io
import re
import struct
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path

CHECKSUMS = {
    "r-cran-janeaustenr_1.0.0-1_all.deb": (
        "df6bddf211906d1ff404f8ff662c21b34e6660e7f54a311084e749050c019c95"
    ),
    "sword-text-web_426.0-1_all.deb": (
        "930b23670b352f0829a306501de4bebb5e654a2df02cde2cbe86b802177868e1"
    ),
}
NOVELS = ("emma", "mansfield", "northanger", "persuasion", "pride", "sense")
AUSTEN = "./usr/lib/R/site-library/janeaustenr/data/Rdata.rdb"
BIBLE = "./usr/share/sword/modules/texts/ztext/engWEB2015eb/"


def deb_member(deb: Path, member: str) -> bytes:
    """The bytes of one file of a Debian package (an `ar` archive around a tar archive)."""
    data, at = deb.read_bytes(), 8
    found = hashlib.sha256(data).hexdigest()
    if CHECKSUMS[deb.name] != found:
        raise ValueError(f"{deb}: expected SHA-256 {CHECKSUMS[deb.name]}, got {found}")
    while at < len(data):
        name = data[at : at + 16].decode().strip()
        size = int(data[at + 48 : at + 58])
        if name.startswith("data.tar"):
            with tarfile.open(fileobj=io.BytesIO(data[at + 60 : at + 60 + size])) as tar:
                return tar.extractfile(member).read()  # type: ignore[union-attr]
        at += 60 + size + size % 2
    raise ValueError(f"{deb}: no data.tar in it")


def r_strings(raw: bytes) -> list[str]:
    """A character vector in R's binary serialisation (XDR): a count, then (flags, length, bytes)."""
    start = raw.index(b"\0\0\0\x10", 14)
    (count,), at, lines = struct.unpack_from(">i", raw, start + 4), start + 8, []
    for _ in range(count):
        _, length = struct.unpack_from(">ii", raw, at)
        at += 8 + max(length, 0)
        lines.append(raw[at - max(length, 0) : at].decode())
    return lines


def austen(deb: Path) -> dict[str, list[str]]:
    """Each novel as a list of paragraphs, by short name."""
    data, at, novels = deb_member(deb, AUSTEN), 0, {}
    for name in NOVELS:
        stream = zlib.decompressobj()
        lines = r_strings(stream.decompress(data[at + 4 :]))
        at = len(data) - len(stream.unused_data)
        novels[name] = list(paragraphs("\n".join(lines[1:])))
    return novels


def bible(deb: Path) -> list[str]:
    """The World English Bible as a list of paragraphs of five sentences each."""
    found: list[str] = []
    for part in ("ot", "nt"):
        index = deb_member(deb, f"{BIBLE}{part}.bzs")
        blocks = deb_member(deb, f"{BIBLE}{part}.bzz")
        for offset, size, _ in struct.iter_unpack("<III", index):
            osis = zlib.decompress(blocks[offset : offset + size]).decode()
            osis = re.sub(r"<(note|title)\b.*?</\1>", " ", osis, flags=re.DOTALL)
            osis = re.sub(r"</?(verse|chapter|div|p|l|lg|lb)\b[^>]*>", " ", osis)
            book = sentences(clean(re.sub(r"<[^>]*>", "", osis)))
            found += [" ".join(book[i : i + 5]) for i in range(0, len(book), 5)]
    return [p for p in found if "World English Bible" not in p and "Bible" not in p]


def paragraphs(text: str) -> Iterator[str]:
    """Blocks between empty lines, unwrapped; headings and scraps are left out."""
    for block in re.split(r"\n\s*\n", text):
        line = clean(block)
        if re.match(r"(chapter|volume)\b", line, flags=re.IGNORECASE):
            yield "CHAPTER"
        elif len(line) > 20 and line[-1] in ".!?\"'":
            yield line


def clean(text: str) -> str:
    """Straight quotes, one kind of dash, no underscores for emphasis, single spaces."""
    for old, new in {"“": '"', "”": '"', "‘": "'", "’": "'", "—": "--", "_": "", "*": ""}.items():
        text = text.replace(old, new)
    return re.sub(r"\s+", " ", text).strip()


def sentences(paragraph: str) -> list[str]:
    """Splits after . ! ? (and a closing quote) before a capital; `Mr.` and the like end nothing."""
    found: list[str] = []
    for part in re.split(r"(?<=[.!?])\s+(?=[\"'A-Z])|(?<=[.!?][\"'])\s+(?=[\"'A-Z])", paragraph):
        if found and re.search(r"\b(Mr|Mrs|Dr|St)\.$", found[-1]):
            found[-1] += " " + part
        else:
            found.append(part)
    return found
