"""Tar headers: where the members of an archive lie, read without unpacking anything.

Three dialects: POSIX ustar, GNU long names, pax (POSIX.1-2001). What a header says is only ever
compared and returned: no name is opened and nothing is written.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

BLOCK = 512
_ZEROS = bytes(BLOCK)
_REGULAR = b"0\x007"  # "7": contiguous, regular to everyone
_NO_DATA = b"123456"  # links, devices, folders, pipes: their size field stands for no bytes
_LONGEST_NAME = 1 << 16  # bytes of a GNU long name, and of a pax header
_LONGEST_PAX = 1 << 20

# Reads `count` bytes at `offset`, fewer only at the archive's end.
Read = Callable[[int, int], bytes]


class BadTar(ValueError):
    """An archive that cannot be read on: `offset` is the byte where that shows."""

    def __init__(self, offset: int, detail: str) -> None:
        super().__init__(f"byte {offset:,}: {detail}")
        self.offset = offset


class Member(NamedTuple):
    """A regular file in an archive.

    name: as written, undecodable bytes as surrogates. start: byte of its first header, long-name
    headers included. data: byte of its content. size: bytes of its content.
    """

    name: str
    start: int
    data: int
    size: int

    @property
    def end(self) -> int:
        """The byte after its content, padding left out."""
        return self.data + self.size


def members(read: Read, size: int, offset: int = 0) -> Iterator[Member]:
    """The regular files of an archive of `size` bytes from a header at `offset` on, in order.

    Folders, links, devices are passed over. Ends at the first zero block or at the end of the
    archive. Raises BadTar where it is cut off or damaged; what came before is good.
    """
    start, long_name, records = offset, "", dict[str, str]()
    while offset < size:
        header = read(offset, BLOCK)
        if len(header) < BLOCK:
            raise BadTar(offset, f"cut off in a header ({len(header)} of {BLOCK} bytes)")
        if header == _ZEROS:
            if start != offset:
                raise BadTar(offset, "the archive ends between a long name and its file")
            return
        _check_sum(header, offset)
        kind = header[156:157]
        count = _number(header[124:136], offset)
        if kind in (b"L", b"K", b"x", b"X", b"g"):
            data = _extension(read, offset + BLOCK, count, size, kind)
            if kind == b"L":
                long_name = _text(data.split(b"\0", 1)[0])
            elif kind in (b"x", b"X"):
                records.update(_pax(data, offset + BLOCK))
            elif kind == b"g" and _pax(data, offset + BLOCK).keys() & {"path", "size"}:
                raise BadTar(offset, "a global pax header sets names or sizes of all members")
            alone = kind == b"g" and start == offset  # it belongs to no member
            offset += BLOCK + _padded(count)
            start = offset if alone else start
            continue
        if kind == b"S":
            raise BadTar(offset, "GNU sparse file: its length in the archive is not known")
        name = records.get("path") or long_name or _name(header)
        if "size" in records:
            count = _decimal(records["size"], offset)
        data_at, folder = offset + BLOCK, kind == b"\0" and _name(header).endswith("/")
        occupied = 0 if kind in _NO_DATA or folder else _padded(count)
        if data_at + min(occupied, count) > size:
            raise BadTar(
                offset, f"cut off in {name[:80]!r} ({size - data_at:,} of {count:,} bytes)"
            )
        if kind in _REGULAR and not folder:
            yield Member(name, start, data_at, count)
        offset = data_at + occupied
        start, long_name, records = offset, "", {}
    if start < offset and start < size:
        raise BadTar(start, "the archive ends between a long name and its file")


def _check_sum(header: bytes, offset: int) -> None:
    said = _number(header[148:156], offset)
    # 256: the checksum's own field counts as eight spaces.
    if said == 256 + sum(header) - sum(header[148:156]):
        return
    signed = 256 + sum(byte - 256 * (byte > 127) for byte in header[:148] + header[156:])
    if said != signed:  # some old writers summed signed bytes
        raise BadTar(offset, "damaged header (checksum)")


def _number(field: bytes, offset: int) -> int:
    if field[0] & 0x80:  # GNU: base 256 for what octal digits cannot hold
        if field[0] != 0x80:
            raise BadTar(offset, "damaged header (negative number)")
        return int.from_bytes(field[1:], "big")
    digits = field[:-1]  # as nearly all writers have it: all digits, then NUL or a space
    if field[-1] not in b"\0 " or not digits.isdigit():
        digits = field.split(b"\0", 1)[0].strip(b" ")
    if not digits:
        return 0
    # int() itself would take signs, underscores and other spaces.
    if digits.strip(b"01234567"):
        raise BadTar(offset, f"damaged header (number {digits!r})")
    return int(digits, 8)


def _decimal(text: str, offset: int) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 19):
        raise BadTar(offset, f"damaged pax header (size {text[:40]!r})")
    return int(text)


def _extension(read: Read, offset: int, count: int, size: int, kind: bytes) -> bytes:
    if count > (_LONGEST_NAME if kind in b"LK" else _LONGEST_PAX):
        raise BadTar(offset, f"damaged header (a {kind.decode()} header of {count:,} bytes)")
    if offset + count > size:
        raise BadTar(offset, "cut off in a long name or pax header")
    data = read(offset, count)
    if len(data) < count:
        raise BadTar(offset, "cut off in a long name or pax header")
    return data


def _pax(data: bytes, offset: int) -> dict[str, str]:
    """Records `LENGTH key=value` + newline, LENGTH in decimal digits, counting itself."""
    records = {}
    while data and data[0]:
        digits, _, _ = data[:20].partition(b" ")
        length = int(digits) if digits.isdigit() else 0
        record = data[len(digits) + 1 : length]
        key, equals, value = record[:-1].partition(b"=")
        if length > len(data) or record[-1:] != b"\n" or not equals or not key:
            raise BadTar(offset, "damaged pax header")
        records[_text(key)] = _text(value)
        data = data[length:]
    return records


def _name(header: bytes) -> str:
    name = header[:100].split(b"\0", 1)[0]
    prefix = header[345:500].split(b"\0", 1)[0]
    # GNU's own dialect ("ustar  ") keeps times where POSIX keeps the prefix.
    if prefix and header[257:263] == b"ustar\0":
        name = prefix + b"/" + name
    return _text(name)


def _text(data: bytes) -> str:
    return data.decode("utf-8", "surrogateescape")


def _padded(count: int) -> int:
    return -(-count // BLOCK) * BLOCK
