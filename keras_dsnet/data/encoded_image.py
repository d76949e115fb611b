"""Encoded images: JPEG, PNG, BMP, GIF, WebP."""

import dataclasses
import functools
import os
import struct
from collections.abc import Callable

import tensorflow as tf

# EXIF orientations. From 5 on, rows and columns are exchanged before mirroring.
UPRIGHT = 1
_TRANSPOSED_FROM = 5
_MIRRORED_LEFT_RIGHT = (2, 3, 6, 7)
_MIRRORED_UP_DOWN = (3, 4, 7, 8)

# 67 million pixels take 200 MB decoded and 800 MB while they are resized. The header of a small
# file can claim any size.
MAX_PIXELS = 2**26
_HEAD_BYTES = 4096
_ORIENTATION_TAG = 0x0112
_SHORT = 3
_START_OF_FRAME = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_START_OF_SCAN, _APP1 = 0xDA, 0xE1
_TIFF = {b"II*\0": "TIFF", b"MM\0*": "TIFF", b"II+\0": "TIFF", b"MM\0+": "TIFF"}
_WEBP_PIXEL = (
    b"RIFF\x1a\0\0\0WEBPVP8L\x0e\0\0\0/\0\0\0\0\x07\x10\x11\xfd\x0fDD\xff\x03"  # 1x1, lossless
)


def decode_image(
    encoded: tf.Tensor,
    window_of: Callable[[tf.Tensor], tf.Tensor] | None = None,
    orientation: tf.Tensor | None = None,
) -> tf.Tensor:
    """Decodes an image to RGB and turns it upright.

    TensorFlow decodes JPEG, PNG, BMP, GIF (the first frame) and, in newer versions, WebP. Only the
    window of a JPEG is decoded, which makes random crops of photographs cheap.

    Args:
        encoded: Scalar string tensor, the content of the file.
        window_of: Function that takes the shape of the upright image, int32 `[3]`, and returns the
            window to decode, int32 `[4]`: top, left, height, width. Defaults to the whole image.
        orientation: Scalar int32 tensor, the EXIF orientation (1 to 8) of the image. Defaults to
            None for images that are stored upright.

    Returns:
        uint8 tensor `[height, width, 3]`.
    """
    stored_window_of = window_of
    if window_of is not None and orientation is not None:

        def stored_window_of(shape):
            return _stored_window(shape, window_of, orientation)

    def jpeg():
        # TensorFlow's default is a faster transform than the one that other decoders use.
        settings = {"channels": 3, "dct_method": "INTEGER_ACCURATE"}
        if window_of is None:
            return tf.io.decode_jpeg(encoded, **settings)
        window = stored_window_of(tf.io.extract_jpeg_shape(encoded))
        return tf.io.decode_and_crop_jpeg(encoded, window, **settings)

    def decode(channels):
        image = tf.io.decode_image(encoded, channels, expand_animations=False)
        return tf.ensure_shape(image, [None, None, channels or None])

    def webp():
        # TensorFlow cannot decode a transparent WebP to three channels.
        return decode(0)[..., :3]

    def other():
        image = tf.cond(_is_webp(encoded), webp, lambda: decode(3))
        if window_of is None:
            return image
        return tf.image.crop_to_bounding_box(image, *tf.unstack(stored_window_of(tf.shape(image))))

    image = tf.cond(tf.io.is_jpeg(encoded), jpeg, other)
    image = tf.ensure_shape(image, [None, None, 3])
    if orientation is None:
        return image
    return tf.cond(orientation > 1, lambda: _upright(image, orientation), lambda: image)


def _upright(image, orientation):
    is_transposed = orientation >= _TRANSPOSED_FROM
    image = tf.cond(is_transposed, lambda: tf.transpose(image, (1, 0, 2)), lambda: image)
    mirrored = [_is_among(orientation, _MIRRORED_UP_DOWN)]
    mirrored.append(_is_among(orientation, _MIRRORED_LEFT_RIGHT))
    for axis, is_mirrored in enumerate(mirrored):
        image = tf.where(is_mirrored, tf.reverse(image, [axis]), image)
    return tf.ensure_shape(image, [None, None, 3])


def _stored_window(shape, window_of, orientation):
    """Returns the window of the stored image for a window of the upright image."""
    is_transposed = orientation >= _TRANSPOSED_FROM
    upright = tf.where(is_transposed, tf.gather(shape, (1, 0, 2)), shape)
    window = window_of(upright)
    top, left, height, width = tf.unstack(window)
    top = tf.where(_is_among(orientation, _MIRRORED_UP_DOWN), upright[0] - top - height, top)
    left = tf.where(_is_among(orientation, _MIRRORED_LEFT_RIGHT), upright[1] - left - width, left)
    return tf.where(is_transposed, [left, top, width, height], [top, left, height, width])


def _is_webp(encoded):
    return tf.equal(tf.strings.substr(tf.strings.join([encoded, b"\0" * 12]), 8, 4), b"WEBP")


def _is_among(value, values):
    return tf.reduce_any(tf.equal(value, values))


@dataclasses.dataclass(frozen=True)
class ImageHeader:
    """The header of an image file.

    Attributes:
        format: Str, name of the format, such as `"JPEG"`. None if the file is not an image.
        height: Int, stored height in pixels. 0 if the header is damaged.
        width: Int, stored width in pixels. 0 if the header is damaged.
        orientation: Int, EXIF orientation from 1 to 8, where 1 is upright.
        is_complete: Bool, whether the file ends as its format requires.
        problem: Str, the reason why the image cannot be used, or None.
    """

    format: str | None
    height: int = 0
    width: int = 0
    orientation: int = UPRIGHT
    is_complete: bool = False
    problem: str | None = None

    @property
    def is_sound(self):
        """Whether nothing in the header suggests that the file cannot be decoded."""
        return self.is_complete and self.problem is None and self.height > 0 and self.width > 0


def read_header(path: str | os.PathLike) -> ImageHeader:
    """Reads the header of an image file, whatever the ending of its name.

    Args:
        path: Path of the file.

    Returns:
        `ImageHeader`.

    Raises:
        OSError: The file cannot be read.
    """
    file = os.open(path, os.O_RDONLY)
    try:
        size = os.fstat(file).st_size
        head = os.pread(file, _HEAD_BYTES, 0)

        def read(start, length):
            if start + length <= len(head):
                return head[start : start + length]
            return os.pread(file, length, start)

        try:
            header = _parse(head, read, size)
        except (struct.error, IndexError):
            return ImageHeader(_format(head))
    finally:
        os.close(file)
    if header.height * header.width > MAX_PIXELS:
        problem = (
            f"{header.width}x{header.height} pixels, more than {MAX_PIXELS} in all: make it smaller"
        )
        return dataclasses.replace(header, problem=problem)
    return header


def _format(head):
    if head[:3] == b"\xff\xd8\xff":
        return "JPEG"
    if head[:8] == b"\x89PNG\r\n\x1a\n":
        return "PNG"
    if head[:6] in (b"GIF87a", b"GIF89a"):
        return "GIF"
    # Two letters are a weak signature, so the size of the header is compared too.
    if head[:2] == b"BM" and head[14:18] in (b"\x28\0\0\0", b"\x6c\0\0\0", b"\x7c\0\0\0"):
        return "BMP"
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "WebP"
    if head[:2] == b"\xff\x0a" or head[:12] == b"\0\0\0\x0cJXL \r\n\x87\n":
        return "JPEG XL"
    if head[4:8] == b"ftyp":
        brand = head[8:12]
        if brand in (b"avif", b"avis"):
            return "AVIF"
        if brand in (b"heic", b"heix", b"hevc", b"heim", b"heis", b"mif1", b"msf1"):
            return "HEIC"
    return _TIFF.get(head[:4])


def _parse(head, read, size):
    kind = _format(head)
    parse = {"JPEG": _jpeg, "PNG": _png, "GIF": _gif, "BMP": _bmp, "WebP": _webp}.get(kind)
    if parse is not None:
        return parse(read, size)
    if kind is None or kind == "JPEG XL":
        return ImageHeader(kind)
    return ImageHeader(kind, problem=f"TensorFlow does not decode {kind}")


def _jpeg(read, size):
    height = width = 0
    orientation = UPRIGHT
    start = 2
    while start + 4 <= size:
        marker = read(start, 4)
        if marker[0] != 0xFF:
            break
        code = marker[1]
        if code == 0xFF:  # a fill byte
            start += 1
            continue
        if code == 0x01 or 0xD0 <= code <= 0xD8:  # no length follows
            start += 2
            continue
        if code in _START_OF_FRAME:
            height, width = struct.unpack(">HH", read(start + 5, 4))
            break
        if code == _START_OF_SCAN:
            break
        length = marker[2] << 8 | marker[3]
        if code == _APP1 and orientation == UPRIGHT:
            content = read(start + 4, max(0, length - 2))
            if content[:6] == b"Exif\0\0":
                orientation = _orientation(content[6:])
        start += 2 + length
    is_complete = read(max(0, size - 2), 2) == b"\xff\xd9"
    return ImageHeader("JPEG", height, width, orientation, is_complete)


def _png(read, size):
    width, height = struct.unpack(">II", read(16, 8))
    orientation = UPRIGHT
    start = 8
    while start + 8 <= size:
        length, kind = struct.unpack(">I4s", read(start, 8))
        if kind == b"eXIf":
            orientation = _orientation(read(start + 8, length))
        # The pixels may be stored in thousands of chunks, and few programs write any after them.
        if kind in (b"eXIf", b"IDAT", b"IEND"):
            break
        start += 12 + length
    is_complete = read(max(0, size - 8), 4) == b"IEND"
    return ImageHeader("PNG", height, width, orientation, is_complete)


def _gif(read, size):
    width, height = struct.unpack("<HH", read(6, 4))
    return ImageHeader("GIF", height, width, is_complete=read(size - 1, 1) == b";")


def _bmp(read, size):
    pixels_start, header_size, width, height = struct.unpack("<IIii", read(10, 16))
    bits, compression = struct.unpack("<HI", read(28, 6))
    height = abs(height)
    row_bytes = (width * bits + 31) // 32 * 4
    is_complete = width > 0 and size >= pixels_start + row_bytes * height
    problem = None
    if bits not in (8, 24, 32):
        problem = f"TensorFlow does not decode a BMP of {bits} bits"
    elif compression not in (0, 3):
        problem = "TensorFlow does not decode a compressed BMP"
    elif bits == 8:
        # TensorFlow reads the indices of the palette as gray values.
        palette = read(14 + header_size, max(0, pixels_start - 14 - header_size))
        gray = b"".join(bytes((value, value, value)) for value in range(len(palette) // 4))
        if b"".join(palette[at : at + 3] for at in range(0, len(palette) - 3, 4)) != gray:
            problem = "TensorFlow does not decode a BMP with a palette"
    return ImageHeader("BMP", height, max(0, width), is_complete=is_complete, problem=problem)


def _webp(read, size):
    (riff_size,) = struct.unpack("<I", read(4, 4))
    kind, first = read(12, 4), read(20, 10)
    problem = None if _decodes_webp() else "this TensorFlow does not decode WebP"
    orientation = UPRIGHT
    if kind == b"VP8X":
        width = 1 + int.from_bytes(first[4:7], "little")
        height = 1 + int.from_bytes(first[7:10], "little")
        if first[0] & 0x02:
            problem = problem or "TensorFlow does not decode an animated WebP as one image"
        if first[0] & 0x08:
            orientation = _webp_orientation(read, size)
    elif kind == b"VP8L":
        bits = int.from_bytes(first[1:5], "little")
        width, height = 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    else:
        width, height = (value & 0x3FFF for value in struct.unpack("<HH", first[6:10]))
    return ImageHeader("WebP", height, width, orientation, size >= riff_size + 8, problem)


def _webp_orientation(read, size):
    start = 12
    while start + 8 <= size:
        kind, length = struct.unpack("<4sI", read(start, 8))
        if kind == b"EXIF":
            content = read(start + 8, length)
            return _orientation(content.removeprefix(b"Exif\0\0"))
        start += 8 + length + length % 2
    return UPRIGHT


def _orientation(tiff):
    """Returns the orientation in EXIF data, or upright if it is not one of the eight."""
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(tiff[:4])
    if order is None:
        return UPRIGHT
    try:
        (start,) = struct.unpack_from(order + "I", tiff, 4)
        (count,) = struct.unpack_from(order + "H", tiff, start)
        for entry in range(start + 2, start + 2 + 12 * count, 12):
            tag, kind, _, value = struct.unpack_from(order + "HHIH", tiff, entry)
            if tag == _ORIENTATION_TAG:
                return value if kind == _SHORT and 1 <= value <= 8 else UPRIGHT
    except struct.error:
        pass
    return UPRIGHT


@functools.cache
def _decodes_webp():
    try:
        tf.io.decode_image(_WEBP_PIXEL, channels=3, expand_animations=False)
    except tf.errors.InvalidArgumentError:
        return False
    return True
