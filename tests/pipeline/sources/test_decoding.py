from __future__ import annotations

import struct
import zlib
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image

from pipeline.shards.pixels import Pixels
from pipeline.sources.decoding import Refused, decode, fit
from tests.fixtures.pictures import encoded, picture, raw_png

RGB = picture(1, 5, 7)
GREY = RGB[..., 0]
GREY_16 = np.array([[0, 257 * 3, 257 * 100 + 128], [257 * 100 + 129, 65534, 65535]], np.uint16)
GREY_8 = np.array([[0, 3, 100], [101, 255, 255]], np.uint8)
LIMIT = 10_000


def grey(levels: Pixels) -> Pixels:
    return np.repeat(levels[..., None], 3, axis=2)


def raw_tiff(bits: int, sample_format: int, photometric: int, data: bytes) -> bytes:
    """A grey TIFF of 2x2 pixels with levels of any kind."""
    short, long = 3, 4
    tags = [
        *((256, short, 2), (257, short, 2), (258, short, bits), (259, short, 1), (262, short, photometric), (273, long, 8)),
        *((277, short, 1), (278, short, 2), (279, long, len(data)), (339, short, sample_format)),
    ]
    entries = b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in tags)
    return struct.pack("<2sHI", b"II", 42, 8 + len(data)) + data + struct.pack("<H", len(tags)) + entries + bytes(4)


def palette() -> Image.Image:
    image = Image.fromarray((GREY % 4).astype(np.uint8), "P")
    image.putpalette(bytes(range(10, 22)))
    return image


PALETTE = np.arange(10, 22, dtype=np.uint8).reshape(4, 3)
ALPHA = np.where(np.arange(35).reshape(5, 7) % 3 == 0, 0, 255).astype(np.uint8)
CMYK = np.random.default_rng(3).integers(0, 256, (5, 7, 4), dtype=np.uint8)


def cmyk_to_rgb(cmyk: Pixels) -> Pixels:
    rest = 255 - cmyk[..., 3:].astype(int)
    rgb: Pixels = (rest - np.rint(cmyk[..., :3] * rest / 255).astype(int)).astype(np.uint8)
    return rgb


def on_white(pixels: Pixels) -> Pixels:
    return np.where(ALPHA[..., None] == 0, np.uint8(255), pixels)


LOSSLESS: dict[str, tuple[Callable[[], bytes], Pixels]] = {
    "rgb png": (lambda: encoded(RGB), RGB),
    "rgb webp": (lambda: encoded(RGB, "webp", lossless=True), RGB),
    "rgb bmp": (lambda: encoded(RGB, "bmp"), RGB),
    "rgb ppm": (lambda: encoded(RGB, "ppm"), RGB),
    "rgb tiff": (lambda: encoded(RGB, "tiff", compression="tiff_lzw"), RGB),
    "rgb 16 bit": (lambda: raw_png(2, 2, 16, 2, bytes.fromhex("12ff340056000000ff00ffff")), np.array([[[18, 52, 86], [0, 255, 255]]] * 2)),
    "grey": (lambda: encoded(GREY), grey(GREY)),
    "1 bit": (lambda: encoded(Image.fromarray(GREY > 99)), grey(np.where(GREY > 99, 255, 0).astype(np.uint8))),
    "grey 16 bit png": (lambda: encoded(Image.fromarray(GREY_16)), grey(GREY_8)),
    "grey 16 bit tiff": (lambda: encoded(Image.fromarray(GREY_16), "tiff"), grey(GREY_8)),
    "grey 16 bit pgm": (lambda: b"P5 3 2 65535\n" + GREY_16.astype(">u2").tobytes(), grey(GREY_8)),
    "grey 16 bit tiff, white first": (lambda: encoded(Image.fromarray(65535 - GREY_16), "tiff", tiffinfo={262: 0}), grey(GREY_8)),
    "grey 12 bit tiff": (lambda: raw_tiff(12, 1, 1, bytes.fromhex("000fff800640")), grey(np.array([[0, 255], [128, 100]], np.uint8))),
    "grey 8 bit tiff, white first": (lambda: raw_tiff(8, 1, 0, bytes([255, 250, 100, 0])), grey(np.array([[0, 5], [155, 255]], np.uint8))),
    "grey 12 bit pgm": (lambda: b"P5 2 2 4095\n" + bytes.fromhex("00000fff08000640"), grey(np.array([[0, 255], [128, 100]], np.uint8))),
    "grey 16 bit, one level clear": (
        lambda: raw_png(3, 1, 16, 0, bytes.fromhex("000005050606"), clear=0x0505),
        grey(np.array([[0, 255, 6]], np.uint8)),
    ),
    "grey 8 bit, one level clear": (lambda: raw_png(3, 1, 8, 0, bytes([0, 5, 6]), clear=5), grey(np.array([[0, 255, 6]], np.uint8))),
    "grey 4 bit, one level clear": (lambda: raw_png(4, 1, 4, 0, b"\x05\x6f", clear=5), grey(np.array([[0, 255, 102, 255]], np.uint8))),
    "grey 2 bit, one level clear": (lambda: raw_png(4, 1, 2, 0, b"\x1b", clear=1), grey(np.array([[0, 255, 170, 255]], np.uint8))),
    "1 bit, black clear": (lambda: raw_png(4, 1, 1, 0, b"\x50", clear=0), grey(np.full((1, 4), 255, np.uint8))),
    "palette": (lambda: encoded(palette()), PALETTE[GREY % 4]),
    "palette, one colour clear": (
        lambda: encoded(palette(), transparency=2),
        np.where((GREY % 4 == 2)[..., None], np.uint8(255), PALETTE[GREY % 4]),
    ),
    "rgba": (lambda: encoded(np.dstack([RGB, ALPHA])), on_white(RGB)),
    "grey with alpha": (lambda: encoded(Image.fromarray(np.dstack([GREY, ALPHA]))), on_white(grey(GREY))),
    "cmyk": (lambda: encoded(Image.fromarray(CMYK, "CMYK"), "tiff"), cmyk_to_rgb(CMYK)),
    "animated gif": (lambda: encoded(palette(), "gif", save_all=True, append_images=[Image.new("P", (7, 5))]), PALETTE[GREY % 4]),
}


@pytest.mark.parametrize("name", LOSSLESS)
def test_every_kind_becomes_exactly_these_levels(name: str) -> None:
    make, expected = LOSSLESS[name]
    pixels = decode(make(), LIMIT)
    assert pixels.dtype == np.uint8
    assert pixels.tolist() == expected.tolist()


def test_half_transparent_pixels_are_mixed_with_white() -> None:
    half = np.full((5, 7, 1), 128, np.uint8)
    expected = RGB * (128 / 255) + 255 * (127 / 255)
    assert np.abs(decode(encoded(np.dstack([RGB, half])), LIMIT) - expected).max() <= 1


@pytest.mark.parametrize("mode", ["CMYK", "RGB"])
def test_jpegs_keep_their_colours(mode: str) -> None:
    red_blue = np.zeros((16, 32, 3), np.uint8)
    red_blue[:, :16, 0] = red_blue[:, 16:, 2] = 255
    pixels = decode(encoded(Image.fromarray(red_blue).convert(mode), "jpeg", quality=95, subsampling=0), LIMIT)
    assert np.abs(pixels.astype(int) - red_blue).max() <= 4


@pytest.mark.parametrize("kind", ["png", "tiff"])
@pytest.mark.parametrize(
    ("orientation", "upright"),
    [
        (1, lambda a: a),
        (2, np.fliplr),
        (3, lambda a: np.rot90(a, 2)),
        (4, np.flipud),
        (5, lambda a: a.transpose(1, 0, 2)),
        (6, lambda a: np.rot90(a, -1)),
        (7, lambda a: np.rot90(a, 2).transpose(1, 0, 2)),
        (8, np.rot90),
    ],
)
def test_exif_orientation_is_undone(kind: str, orientation: int, upright: Callable[[Pixels], Pixels]) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    assert decode(encoded(RGB, kind, exif=exif), LIMIT).tolist() == upright(RGB).tolist()


def chunk(name: bytes, content: bytes, damage: int = 0) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content) ^ damage)


def segment(marker: int, content: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(content) + 2) + content


LARGE = zlib.compress(bytes(2**21))
JUNK = b"\xff" * 40
CHUNKS = {
    "a large text": chunk(b"zTXt", b"note\0\0" + LARGE),
    "a large international text": chunk(b"iTXt", b"note\0\1\0\0\0" + LARGE),
    "a large profile": chunk(b"iCCP", b"profile\0\0" + zlib.compress(bytes(3 * 2**20))),
    "a damaged text": chunk(b"tEXt", b"note\0text", damage=1),
    "a damaged profile": chunk(b"iCCP", JUNK),
    "no EXIF": chunk(b"eXIf", JUNK),
    "a resolution of no bytes": chunk(b"pHYs", b""),
    "something private and damaged": chunk(b"prVt", JUNK, damage=1),
}
SEGMENTS = {
    "no EXIF": segment(0xE1, b"Exif\0\0" + JUNK),
    "a short JFIF": segment(0xE0, b"JFIF"),
    "a short profile": segment(0xE2, b"ICC_PROFILE\0"),
    "a short Adobe": segment(0xEE, b"Adobe"),
    "a damaged index of pictures": segment(0xE2, b"MPF\0" + JUNK),
}


@pytest.mark.parametrize("name", CHUNKS)
@pytest.mark.parametrize("place", ["before", "after"])
def test_what_is_beside_the_pixels_of_a_png_is_no_reason_to_refuse_it(name: str, place: str) -> None:
    png, at = encoded(RGB), 33 if place == "before" else -12
    assert decode(png[:at] + CHUNKS[name] + png[at:], LIMIT).tolist() == RGB.tolist()


@pytest.mark.parametrize("name", SEGMENTS)
def test_what_is_beside_the_pixels_of_a_jpeg_is_no_reason_to_refuse_it(name: str) -> None:
    assert decode(JPEG[:2] + SEGMENTS[name] + JPEG[2:], LIMIT).tolist() == decode(JPEG, LIMIT).tolist()


@pytest.mark.parametrize("kind", ["png", "webp", "jpeg"])
@pytest.mark.parametrize("exif", [b"junk", b"Exif\0\0junk", b"Exif\0\0II*\0\x08\0\0\0" + JUNK])
def test_exif_that_cannot_be_read_turns_nothing(kind: str, exif: bytes) -> None:
    options = {"lossless": True} if kind == "webp" else {}
    assert decode(encoded(RGB, kind, exif=exif, **options), LIMIT).tolist() == decode(encoded(RGB, kind, **options), LIMIT).tolist()


def test_a_large_comment_beside_them_leaves_orientation_transparency_and_colours_as_they_are() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    png = encoded(palette(), exif=exif, transparency=2)
    upright = np.rot90(np.where((GREY % 4 == 2)[..., None], np.uint8(255), PALETTE[GREY % 4]), -1)
    assert decode(png[:33] + CHUNKS["a large text"] + png[33:], LIMIT).tolist() == upright.tolist()
    jpeg = encoded(Image.fromarray(picture(0, 64, 64)).convert("CMYK"), "jpeg", exif=exif)
    assert decode(jpeg[:2] + SEGMENTS["a short JFIF"] + jpeg[2:], LIMIT).tolist() == decode(jpeg, LIMIT).tolist()


XMP = b'XML:com.adobe.xmp\0\0\0\0\0<x:xmpmeta><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
TURNED = Image.Exif()
TURNED[0x0112] = 6
ORIENTATIONS = {
    "XMP": chunk(b"iTXt", XMP),
    "compressed XMP": chunk(b"iTXt", XMP[:18] + b"\1\0\0\0" + zlib.compress(XMP[22:])),
    "EXIF as text": chunk(b"tEXt", b"Raw profile type exif\0\nexif\n%d\n%s\n" % (len(TURNED.tobytes()), TURNED.tobytes().hex().encode())),
}


@pytest.mark.parametrize("name", ORIENTATIONS)
@pytest.mark.parametrize("other", sorted(CHUNKS.keys() - {"no EXIF"}))  # EXIF comes before XMP
def test_what_turns_a_png_turns_it_whatever_else_is_damaged(name: str, other: str) -> None:
    png, upright = encoded(RGB), np.rot90(RGB, -1).tolist()
    assert decode(png[:33] + ORIENTATIONS[name] + png[33:], LIMIT).tolist() == upright
    assert decode(png[:33] + ORIENTATIONS[name] + CHUNKS[other] + png[33:], LIMIT).tolist() == upright


def test_a_text_that_is_too_large_to_say_which_side_is_up_is_no_reason_to_refuse_a_png() -> None:
    png = encoded(RGB)
    assert decode(png[:33] + chunk(b"zTXt", b"Raw profile type exif\0\0" + LARGE) + png[33:], LIMIT).tolist() == RGB.tolist()


JPEG = encoded(picture(0, 64, 64), "jpeg")
REFUSED = {
    "zero bytes": (b"", "zero bytes: .* embed it"),
    "a drawing": (b"<svg width='9'/>", "but an SVG drawing: save it as PNG"),
    "a drawing with a declaration": (b"<?xml version='1.0'?><svg/>", "but XML, such as an SVG drawing"),
    "text": (b"not an image at all", "not an image"),
    "postscript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n", "not an image"),
    "cut jpeg": (JPEG[: len(JPEG) // 2], "truncated"),
    "cut png": (encoded(picture(0, 64, 64))[:5000], "truncated"),
    "cut png with a large text": (
        encoded(picture(0, 64, 64))[:33] + CHUNKS["a large text"] + encoded(picture(0, 64, 64))[33:5000],
        "text|trunc",
    ),
    "cut gif": (encoded(picture(0, 64, 64), "gif")[:2500], "truncated"),
    "cut webp": (encoded(picture(0, 64, 64), "webp")[:500], "truncated|not an image"),
    "only a header": (JPEG[:20], "truncated|not an image"),
    "one pixel too many": (encoded(picture(0, 100, 101)), "10000 pixels"),
    "bomb": (raw_png(30_000, 30, 1, 0, bytes(3750)), "10000 pixels"),
    "32 bit": (encoded(Image.fromarray(GREY.astype(np.int32)), "tiff"), "save as 8 or 16 bit"),
    "32 bit, unsigned": (raw_tiff(32, 1, 1, bytes(16)), "32-bit integer levels .* save as 8 or 16 bit"),
    "16 bit, signed": (raw_tiff(16, 2, 1, bytes(8)), "signed levels"),
    "8 bit, signed": (raw_tiff(8, 2, 1, bytes([0, 127, 128, 255])), "signed levels"),
    "16 bit, undefined": (raw_tiff(16, 4, 1, bytes(8)), "a TIFF with levels that are not understood"),
    "16 bit colours, one clear": (raw_png(1, 1, 16, 2, bytes(6), clear=0), "16-bit colours with a transparent one"),
    "L*a*b*": (encoded(Image.new("LAB", (2, 2)), "tiff"), r"L\*a\*b\*"),
    "floating point": (encoded(Image.fromarray(np.zeros((2, 2), np.float32)), "tiff"), "floating-point"),
}


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.filterwarnings("error")
def test_what_is_no_whole_image_is_refused_with_the_reason(name: str) -> None:
    data, reason = REFUSED[name]
    with pytest.raises(Refused, match=reason) as first:
        decode(data, LIMIT)
    with pytest.raises(Refused) as second:
        decode(data, LIMIT)
    assert str(first.value) == str(second.value)  # no memory addresses, so that the quarantine table is the same every time
    assert "\n" not in str(first.value)


def test_the_pixel_limit_is_inclusive_and_leaves_pillow_as_it_was() -> None:
    before = Image.MAX_IMAGE_PIXELS
    assert decode(encoded(picture(0, 100, 100)), LIMIT).shape == (100, 100, 3)
    assert before == Image.MAX_IMAGE_PIXELS


def test_fit_cuts_the_centre_and_leaves_the_right_size_alone() -> None:
    wide = picture(0, 8, 13)
    assert fit(wide, 8).tolist() == wide[:, 2:10].tolist()
    assert fit(wide.transpose(1, 0, 2), 8).tolist() == wide[:, 2:10].transpose(1, 0, 2).tolist()
    assert fit(wide[:, :8], 8).tolist() == wide[:, :8].tolist()


def test_fit_shrinks_without_aliasing_and_enlarges() -> None:
    checks = np.repeat(((np.indices((128, 160)).sum(0) % 2) * 255).astype(np.uint8)[..., None], 3, axis=2)
    assert np.abs(fit(checks, 16).astype(int) - 127).max() <= 2
    halves = np.zeros((4, 90, 3), np.uint8)
    halves[:2] = 200
    large = fit(halves, 64)
    assert large.shape == (64, 64, 3)
    assert large[2, :, 0].min() > 190
    assert large[-3].max() < 10
