"""Feature stores of format version 1: just as much of HDF5 as they consist of, read strictly and within bounds.

After the *HDF5 File Format Specification Version 3.0*: a superblock of version 2, object headers of version 2 with
links and attributes in them, strings in a global heap, contiguous data sets. Anything else is damage.
"""

import hashlib
from collections.abc import Iterator

from common.store_format import FORMAT, HDF5, MAX_HEADER, ArrayPlace, Damage, Read

DATASPACE, LINK_INFO, DATATYPE, EXTERNAL, LINK, LAYOUT, FILTERS, ATTRIBUTE, CONTINUATION, ATTRIBUTE_INFO = (
    *(1, 2, 3, 7, 6, 8, 0x0B, 0x0C, 0x10, 0x15),
)
DTYPES = {
    bytes.fromhex("11201f000400000000002000170800177f000000"): "<f4",
    bytes.fromhex("11200f0002000000000010000a05000a0f000000"): "<f2",
    bytes.fromhex("100800000800000000004000"): "<i8",
    bytes.fromhex("100000000100000000000800"): "|u1",
}
STRING, VARIABLE_STRING = 0x13, bytes.fromhex("19010100")
NOWHERE = b"\xff" * 8
HEAP = 4096
MAX_CHUNKS = 64
MAX_PIECE = 1 << 16

Message = tuple[int, bytes]


def read_version_1(size: int, read: Read) -> tuple[bytes, dict[str, ArrayPlace]]:
    """The bytes of `/header`, which match their seal, and the places of the arrays in a file of `size` bytes."""
    reader = _Reader(size, read)
    root = reader.messages(reader.root())
    attributes = dict(reader.attribute(body) for kind, body in root if kind == ATTRIBUTE)
    if attributes.get(b"format_version") != (1).to_bytes(8, "little"):
        raise Damage('its attribute "format_version" must be the integer 1')
    links = [reader.link(body) for kind, body in root if kind == LINK]
    places = {name: reader.place(address) for name, address in links}
    header = places.pop("header", None)
    if header is None or header.dtype[:2] != "|S" or len(places) + 1 != len(links):
        raise Damage("it must have one /header, a string, and no name twice")
    text = reader.piece(header.offset, header.nbytes, MAX_HEADER)
    strings = [FORMAT.encode(), hashlib.sha256(text).hexdigest().encode()]
    values = [attributes.get(name, b"") for name in (b"format", b"header_sha256")]
    heap = values[0][4:12]
    expected = [
        len(string).to_bytes(4, "little") + heap + i.to_bytes(4, "little") for i, string in enumerate(strings, 1)
    ]
    if values != expected or reader.piece(_number(heap), HEAP) != _heap(strings):
        raise Damage("/header does not match its seal, or its attributes are not what they were")
    if any(place.dtype[:2] == "|S" for place in places.values()):
        raise Damage("a string is where an array must be")
    return text, places


class _Reader:
    """Reads pieces of a file, each one checked."""

    def __init__(self, size: int, read: Read):
        self._size, self._read = size, read

    def piece(self, offset: int, size: int, most: int = MAX_PIECE) -> bytes:
        if size > most or offset + size > self._size:
            raise Damage("HDF5's own part of it points beyond its bounds")
        return self._read(offset, size)

    def root(self) -> int:
        """The address of the root group."""
        block = self._checked(self.piece(0, 48))
        if block[:12] != HDF5 + b"\x02\x08\x08\x00" or _number(block[12:20]) or block[20:28] != NOWHERE:
            raise Damage("its HDF5 superblock is none of version 1 of the format")
        if _number(block[28:36]) != self._size:
            raise Damage(f"it has {self._size:,} bytes of {_number(block[28:36]):,}")
        return _number(block[36:44])

    def messages(self, address: int) -> list[Message]:
        """The messages of an object header and its continuations."""
        start = self.piece(address, min(64, self._size - min(address, self._size)))
        if start[:5] != b"OHDR\x02" or len(start) < 32:
            raise Damage("an HDF5 object header is missing")
        flags = start[5]
        head = 6 + 16 * bool(flags & 0x20) + 4 * bool(flags & 0x10)
        width = 1 << (flags & 3)
        length = _number(start[head : head + width])
        head += width
        chunk = self._checked(self.piece(address, head + length + 4))
        found, pending = [], [chunk[head:]]
        for count, body in enumerate(pending):
            for kind, message in _split_messages(body, ordered=bool(flags & 4)):
                if kind == CONTINUATION:
                    more = self._checked(self.piece(_number(message[:8]), _number(message[8:16])))
                    if more[:4] != b"OCHK" or count > MAX_CHUNKS:
                        raise Damage("an HDF5 object header does not go on where it says")
                    pending.append(more[4:])
                else:
                    found.append((kind, message))
        return found

    def attribute(self, body: bytes) -> tuple[bytes, bytes]:
        """The name and the value of an attribute: a number's eight bytes, or where a string lies in the heap."""
        if body[:2] != b"\x03\x00":
            raise Damage("an HDF5 attribute is of another kind")
        name, datatype, _, value = _cut(body[9:], [_number(body[i : i + 2]) for i in (2, 4, 6)])
        known = datatype[:4] == VARIABLE_STRING or DTYPES.get(datatype) == "<i8"
        return name.rstrip(b"\0"), value if known else b""

    def link(self, body: bytes) -> tuple[str, int]:
        """The name of a link and the address that it points to; only links within the file are taken."""
        flags = body[1] if len(body) > 1 else 0xFF
        if body[:1] != b"\x01" or flags & ~0x17:  # 8: a link of another kind, such as to another file
            raise Damage("a link in it leads elsewhere")
        at = 2 + 8 * bool(flags & 4) + bool(flags & 0x10)
        width = 1 << (flags & 3)
        name, address = _cut(body[at + width :], [_number(body[at : at + width])])
        if len(address) != 8:
            raise Damage("a link in it is cut off")
        return name.decode("utf-8", "replace"), _number(address)

    def place(self, address: int) -> ArrayPlace:
        """Where the contiguous data set lies whose object header is at `address`."""
        messages = self.messages(address)
        kinds = [kind for kind, _ in messages]
        if any(kinds.count(kind) != 1 for kind in (DATASPACE, DATATYPE, LAYOUT)) or {FILTERS, EXTERNAL} & set(kinds):
            raise Damage("a data set in it is not contiguous and uncompressed")
        by_kind = dict(messages)
        layout, datatype = by_kind[LAYOUT], by_kind[DATATYPE]
        if layout[:2] not in (b"\x03\x01", b"\x04\x01") or len(layout) < 18:
            raise Damage("a data set in it is not contiguous and uncompressed")
        string = len(datatype) == 8 and datatype[0] == STRING
        dtype = f"|S{_number(datatype[4:])}" if string else DTYPES.get(datatype)
        place = ArrayPlace(dtype or "|V0", _shape(by_kind[DATASPACE]), _number(layout[2:10]))
        if dtype is None or place.nbytes != _number(layout[10:18]) or place.stop > self._size:
            raise Damage("a data set in it has another type or size, or reaches beyond its end")
        return place

    def _checked(self, block: bytes) -> bytes:
        if len(block) < 8 or lookup3(block[:-4]) != _number(block[-4:]):
            raise Damage("HDF5's own part of it does not match its checksum")
        return block[:-4]


def lookup3(data: bytes) -> int:
    """Bob Jenkins' hash "lookup3" (2006, public domain), HDF5's checksum.

    >>> hex(lookup3(b"Four score and seven years ago"))
    '0x17770551'
    """
    mask = 0xFFFFFFFF

    def turn(x: int, k: int) -> int:
        return (x << k | x >> 32 - k) & mask

    a = b = c = (0xDEADBEEF + len(data)) & mask
    padded = data + bytes(-len(data) % 12)
    for i in range(0, len(padded), 12):
        a, b, c = (x + _number(padded[i + j : i + j + 4]) & mask for j, x in ((0, a), (4, b), (8, c)))
        if i + 12 < len(padded):
            for k in (4, 6, 8, 16, 19, 4):
                a = (a - c & mask) ^ turn(c, k)
                a, b, c = b, c + b & mask, a
        else:
            for k in (14, 11, 25, 16, 4, 14, 24):
                c = (c ^ b) - turn(b, k) & mask
                a, b, c = b, c, a
            a, b, c = c, a, b
    return c


def _heap(strings: list[bytes]) -> bytes:
    """The global heap of a file that holds these strings: HDF5 has no checksum for it."""
    heap = b"GCOL\x01\0\0\0" + HEAP.to_bytes(8, "little")
    for index, string in enumerate(strings, 1):
        heap += index.to_bytes(8, "little") + len(string).to_bytes(8, "little") + string + bytes(-len(string) % 8)
    return (heap + bytes(8) + (HEAP - len(heap)).to_bytes(8, "little")).ljust(HEAP, b"\0")


def _split_messages(body: bytes, ordered: bool) -> Iterator[Message]:
    at, head = 0, 6 if ordered else 4
    while at + head <= len(body):
        kind, size = body[at], _number(body[at + 1 : at + 3])
        message = body[at + head : at + head + size]
        if len(message) < size:
            raise Damage("an HDF5 message is cut off")
        if kind in (LINK_INFO, ATTRIBUTE_INFO) and message[2:].count(NOWHERE) == 0:
            raise Damage("its links or attributes are not where version 1 of the format has them")
        yield kind, message
        at += head + size


def _shape(dataspace: bytes) -> tuple[int, ...]:
    rank = dataspace[1] if len(dataspace) > 1 else 0xFF
    if dataspace[:1] != b"\x02" or rank > 4 or len(dataspace) < 4 + 8 * rank or dataspace[3] != (rank > 0):
        raise Damage("a data set in it has another kind of shape")
    return tuple(_number(dataspace[4 + 8 * i : 12 + 8 * i]) for i in range(rank))


def _cut(data: bytes, sizes: list[int]) -> list[bytes]:
    """`data` cut into pieces of `sizes`, and what is left."""
    pieces = []
    for size in sizes:
        pieces.append(data[:size])
        data = data[size:]
    return [*pieces, data]


def _number(data: bytes) -> int:
    return int.from_bytes(data, "little")
