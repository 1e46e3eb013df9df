"""A range coder (Martin 1979; the carry as in LZMA's): whole numbers only, so it is exact on every machine.

A symbol that takes `size` of `total` costs log2(total / size) bits; rounding adds at most 2^-23 of that with totals up
to 2^32, the end of the stream at most 8 bytes.
"""

from gopher.errors import GopherError

BITS = 64
TOP = 1 << BITS
LOWEST = 1 << 56  # the range is widened by bytes until it is at least this
MAX_TOTAL = 1 << 32


class Encoder:
    def __init__(self) -> None:
        self.low, self.span = 0, TOP - 1
        self.written = bytearray()

    def encode(self, start: int, size: int, total: int) -> None:
        """Write the symbol that takes [start, start + size) of `total`."""
        part = self.span // total
        self.low, self.span = self.low + start * part, size * part
        if self.low >= TOP:
            self.low -= TOP
            carry(self.written)
        while self.span < LOWEST:
            self.written.append(self.low >> 56)
            self.low, self.span = (self.low << 8) % TOP, self.span << 8

    def finish(self) -> bytes:
        """Everything written, ended with the fewest bytes that name a number inside the last range."""
        for count in range(BITS // 8 + 1):
            step = TOP >> (8 * count)
            number = -(-self.low // step) * step
            if number < self.low + self.span:
                break
        if number >= TOP:
            number -= TOP
            carry(self.written)
        return bytes(self.written) + (number // step).to_bytes(count, "big")


def carry(written: bytearray) -> None:
    """Add one to the number that the bytes are."""
    at = len(written) - 1
    while written[at] == 255:
        written[at] = 0
        at -= 1
    written[at] += 1


class Decoder:
    def __init__(self, coded: bytes) -> None:
        self.coded, self.at = coded, 8
        self.span = TOP - 1
        self.offset = int.from_bytes(coded[:8].ljust(8, b"\0"), "big")  # of the coded number in the range

    def position(self, total: int) -> int:
        """Where in [0, total) the next symbol lies; call `take` with that symbol then. Raises `GopherError`."""
        if self.at > len(self.coded) + 8:
            raise GopherError("the compressed data ends too early; it is cut off or was made by another model")
        self.part = self.span // total
        return min(self.offset // self.part, total - 1)

    def take(self, start: int, size: int) -> None:
        """The symbol at the position took [start, start + size)."""
        self.offset -= start * self.part
        self.span = size * self.part
        while self.span < LOWEST:
            following = self.coded[self.at] if self.at < len(self.coded) else 0
            self.offset, self.span, self.at = (self.offset << 8) | following, self.span << 8, self.at + 1
