"""Encoded images: what their headers tell, and how their pixels are decoded."""

import dataclasses
import functools
import os
import struct

import tensorflow as tf

# EXIF's numbers: those of 5 and more exchange rows and columns before they mirror.
_TRANSPOSED_FROM = 5
_MIRRORED_LEFT_RIGHT = (2, 3, 6, 7)
_MIRRORED_UP_DOWN = (3, 4, 7, 8)


def decode_image(encoded, window_of=None, orientation=None):
    """Decodes an image that TensorFlow knows (of several frames the first) to RGB.

    These are JPEG, PNG, BMP and GIF, and WebP in newer versions. Of a JPEG only the window is
    decoded, which is what makes random crops of photographs cheap.

    Args:
        encoded: scalar string.
        window_of: a function from the image's shape, int32 `[3]`, to the window to return, int32
            `[4]`: top, left, height, width. None returns the whole image. Shape and window are
            those of the upright image.
        orientation: scalar int32 tensor, the EXIF orientation (1 to 8) that the image is turned
            by, or None for images that are upright as stored.

    Returns:
        uint8 `[height, width, 3]`.
    """
    stored_window_of = window_of
    if window_of is not None and orientation is not None:

        def stored_window_of(shape):
            return _stored_window(shape, window_of, orientation)

    def jpeg():
        # TensorFlow's default is a faster transform that other decoders do not use.
        settings = {"channels": 3, "dct_method": "INTEGER_ACCURATE"}
        if window_of is None:
            return tf.io.decode_jpeg(encoded, **settings)
        window = stored_window_of(tf.io.extract_jpeg_shape(encoded))
        return tf.io.decode_and_crop_jpeg(encoded, window, **settings)

    def decode(channels):
        image = tf.io.decode_image(encoded, channels, expand_animations=False)
        return tf.ensure_shape(image, [None, None, channels or None])

    def webp():
        # TensorFlow has no RGB of a transparent WebP.
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
    """Where in the stored image the window of the upright one lies."""
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


# As many pixels, 67 million, take 200 MB decoded and 800 MB while they are resized. A small file
# can claim any size.
MAX_PIXELS = 2**26
UPRIGHT = 1
_HEAD_BYTES = 4096
_ORIENTATION_TAG = 0x0112
_SHORT = 3
_START_OF_FRAME = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_START_OF_SCAN, _APP1 = 0xDA, 0xE1
_TIFF = {b"II*\0": "TIFF", b"MM\0*": "TIFF", b"II+\0": "TIFF", b"MM\0+": "TIFF"}
_WEBP_PIXEL = (
    b"RIFF\x1a\0\0\0WEBPVP8L\x0e\0\0\0/\0\0\0\0\x07\x10\x11\xfd\x0fDD\xff\x03"  # 1x1, lossless
)


@dataclasses.dataclass(frozen=True)
class ImageHeader:
    """What the header of an image file says.

    Attributes:
        format: name of the format, such as `"JPEG"`; None where the file is no image.
        height, width: pixels as stored; 0 where the header is damaged.
        orientation: EXIF orientation, 1 to 8; 1 is upright.
        is_whole: whether the file ends as its format ends.
        problem: why TensorFlow does not decode a file of this format, or None.
    """

    format: str | None
    height: int = 0
    width: int = 0
    orientation: int = UPRIGHT
    is_whole: bool = False
    problem: str | None = None

    @property
    def is_sound(self):
        """Whether the header gives no reason to doubt that the file can be decoded."""
        return self.is_whole and self.problem is None and self.height > 0 and self.width > 0


def read_header(path):
    """Reads the header of an image file; the content decides, not the ending of the name.

    Args:
        path: file name.

    Returns:
        An `ImageHeader`.

    Raises:
        OSError: the file cannot be read.
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
    # Two letters are few: the header's size belongs to the signature.
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
    is_whole = read(max(0, size - 2), 2) == b"\xff\xd9"
    return ImageHeader("JPEG", height, width, orientation, is_whole)


def _png(read, size):
    width, height = struct.unpack(">II", read(16, 8))
    orientation = UPRIGHT
    start = 8
    while start + 8 <= size:
        length, kind = struct.unpack(">I4s", read(start, 8))
        if kind == b"eXIf":
            orientation = _orientation(read(start + 8, length))
        # After the pixels, which may come in thousands of pieces, few programs write anything.
        if kind in (b"eXIf", b"IDAT", b"IEND"):
            break
        start += 12 + length
    is_whole = read(max(0, size - 8), 4) == b"IEND"
    return ImageHeader("PNG", height, width, orientation, is_whole)


def _gif(read, size):
    width, height = struct.unpack("<HH", read(6, 4))
    return ImageHeader("GIF", height, width, is_whole=read(size - 1, 1) == b";")


def _bmp(read, size):
    pixels_start, header_size, width, height = struct.unpack("<IIii", read(10, 16))
    bits, compression = struct.unpack("<HI", read(28, 6))
    height = abs(height)
    row_bytes = (width * bits + 31) // 32 * 4
    is_whole = width > 0 and size >= pixels_start + row_bytes * height
    problem = None
    if bits not in (8, 24, 32):
        problem = f"TensorFlow does not decode a BMP of {bits} bits"
    elif compression not in (0, 3):
        problem = "TensorFlow does not decode a compressed BMP"
    elif bits == 8:
        # TensorFlow takes the palette's indices for gray values.
        palette = read(14 + header_size, max(0, pixels_start - 14 - header_size))
        gray = b"".join(bytes((value, value, value)) for value in range(len(palette) // 4))
        if b"".join(palette[at : at + 3] for at in range(0, len(palette) - 3, 4)) != gray:
            problem = "TensorFlow does not decode a BMP with a palette"
    return ImageHeader("BMP", height, max(0, width), is_whole=is_whole, problem=problem)


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
    """The orientation in EXIF data; upright where they do not say one of the eight."""
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
