"""The text of a file that is compressed with zstd, of one frame or several.

zstandard reads a file that was cut off as if it ended there. So the frames are followed beside it, by the lengths in
them (RFC 8878, section 3.1), to say whether the last one has its end.
"""

from __future__ import annotations

from typing import Any, Final

from ..errors import MissingExtraError

__all__ = ["Zstd", "is_zstd"]

#: First bytes of a frame.
_ZSTD: Final = b"\x28\xb5\x2f\xfd"
#: Memory that a file may ask for.
_MAX_WINDOW: Final = 1 << 27
#: The same of a frame that is to be passed over, after a byte from 0x50 to 0x5f.
_SKIPPABLE: Final = b"\x2a\x4d\x18"
#: Bytes of a frame's header that say how long it is, of a block's, and of that of a frame to be passed over.
_BEGIN, _BLOCK, _SKIPPED = 5, 3, 8


def is_zstd(magic: bytes) -> bool:
    """Whether a file with these four first bytes is compressed with zstd."""
    return magic == _ZSTD or (magic[1:] == _SKIPPABLE and magic[0] >> 4 == 5)


class Zstd:
    """Reads the text of `raw`, which is read from where it stands. Raises MissingExtraError without zstandard."""

    def __init__(self, raw: Any) -> None:
        try:
            import zstandard
        except ImportError:
            raise MissingExtraError("A log that is compressed with zstd", "replay") from None
        self._raw = _Frames(raw)
        decompressor: Any = zstandard.ZstdDecompressor(max_window_size=_MAX_WINDOW)
        self._stream = decompressor.stream_reader(self._raw, read_across_frames=True, closefd=False)
        self._error = zstandard.ZstdError

    def read(self, size: int) -> bytes:
        """At most so many bytes, none at the end. Raises EOFError where the last frame is cut short, and ValueError
        where one is damaged.
        """
        try:
            data: bytes = self._stream.read(size)
        except self._error as error:
            raise ValueError(str(error)) from None
        if not data and size and not self._raw.whole:
            raise EOFError("it ends in the middle of a zstd frame")
        return data


class _Frames:
    """Hands bytes on, and follows the frames in them. `whole`: what was read by now ends with a frame."""

    def __init__(self, raw: Any) -> None:
        self._raw = raw
        #: Bytes to pass over; what of the next header was read, its length, and whether a block's comes next.
        self._skip = 0
        self._header = b""
        self._length = _BEGIN
        self._in_frame = False
        self._checksum = 0

    @property
    def whole(self) -> bool:
        return not (self._skip or self._header or self._in_frame)

    def read(self, size: int) -> bytes:
        data: bytes = self._raw.read(size)
        at = 0
        while at < len(data):
            if self._skip:
                passed = min(self._skip, len(data) - at)
                self._skip -= passed
            else:
                wanted = self._length - len(self._header)
                header = self._header = self._header + data[at : at + wanted]
                passed = wanted
                if len(header) == self._length:
                    self._follow(header)
            at += passed
        return data

    def _follow(self, header: bytes) -> None:
        if not self._in_frame and header[1:4] == _SKIPPABLE:
            if len(header) < _SKIPPED:
                self._length = _SKIPPED
                return
            self._skip = int.from_bytes(header[4:8], "little")
            self._length = _BEGIN
        elif not self._in_frame:
            said = header[4]
            single = said >> 5 & 1
            self._skip = (not single) + (0, 1, 2, 4)[said & 3] + (single, 2, 4, 8)[said >> 6]
            self._checksum = 4 * (said >> 2 & 1)
            self._in_frame, self._length = True, _BLOCK
        else:
            block = int.from_bytes(header, "little")
            # A block of the second type is one byte that is repeated so often.
            self._skip = 1 if block >> 1 & 3 == 1 else block >> 3
            if block & 1:
                self._skip += self._checksum
                self._in_frame, self._length = False, _BEGIN
        self._header = b""
