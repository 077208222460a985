#!/usr/bin/env python3
"""Makes small pictures of the kinds that catalogues hold, each red above blue.

    python3 models/tests/pictures/make.py        # in an environment with pillow and numpy
"""

import pathlib
import shutil
import struct
import zlib

import numpy
from PIL import Image

HERE = pathlib.Path(__file__).resolve().parent
WIDTH, HEIGHT = 24, 16

pixels = numpy.empty((HEIGHT, WIDTH, 3), numpy.uint8)
pixels[: HEIGHT // 2] = (230, 20, 30)
pixels[HEIGHT // 2 :] = (20, 40, 220)
plain = Image.fromarray(pixels)
other = Image.fromarray(255 - pixels)

plain.save(HERE / "plain.png")
plain.quantize(4).save(HERE / "palette.png")
plain.save(HERE / "plain.jpg", quality=95)
plain.save(HERE / "progressive.jpg", quality=95, progressive=True)
plain.convert("CMYK").save(HERE / "cmyk.jpg", quality=95)
plain.save(HERE / "animated.gif", save_all=True, append_images=[other], duration=100)
plain.save(HERE / "animated.webp", save_all=True, append_images=[other], duration=100, quality=95)
shutil.copy(HERE / "plain.jpg", HERE / "plain.jpg.png")


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(header, *chunks):
    parts = [chunk(b"IHDR", struct.pack(">IIBBBBB", *header, 0, 0, 0)), *chunks, chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


# Pillow writes no colours of 16 bits.
rows = b"".join(b"\0" + (row.astype(">u2") * 257).tobytes() for row in pixels)
(HERE / "sixteen-bit.png").write_bytes(png((WIDTH, HEIGHT, 16, 2), chunk(b"IDAT", zlib.compress(rows))))

# And no palette of a colour and a third, at which the decoder of png 0.18 panics.
broken = chunk(b"PLTE", bytes(4)), chunk(b"IDAT", zlib.compress(bytes(2)))
(HERE / "broken-palette.png").write_bytes(png((1, 1, 8, 3), *broken))
