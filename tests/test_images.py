"""Any bytes become an upright RGB picture or a reason; pixels are normalised once; augmentation repeats itself."""

import io
import random
import struct
import zipfile
import zlib

import numpy as np
import pytest
import torch
from PIL import Image, PngImagePlugin

from bitgen.images import MAX_BYTES, BadImage, augment, normalise, picture, safe_open_image, to_uint8

# Pillow warns of broken EXIF data and of large headers, which are read and refused here on purpose.
pytestmark = [pytest.mark.filterwarnings("ignore:Corrupt EXIF"), pytest.mark.filterwarnings("ignore:Image size")]

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)


def quadrants(mode="RGB", size=32):
    """Red and green above, blue and white below: tells every rotation and mirror image apart."""
    image = Image.new("RGB", (size, size), WHITE)
    for colour, corner in ((RED, (0, 0)), (GREEN, (size // 2, 0)), (BLUE, (0, size // 2))):
        image.paste(colour, (*corner, corner[0] + size // 2, corner[1] + size // 2))
    return image.convert(mode)


def encode(image, kind, **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def png_chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width, height, data=b"", depth=8, colour=2):
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return (b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header) + png_chunk(b"IDAT", zlib.compress(data))
            + png_chunk(b"IEND", b""))


def sixteen_bit(value, size=8):
    rows = b"".join(b"\0" + struct.pack(">H", value) * size for _ in range(size))
    return png(size, size, rows, depth=16, colour=0)


def exif(orientation):
    data = Image.Exif()
    data[0x0112] = orientation
    return data.tobytes()


def stored(orientation):
    """A JPEG whose stored pixels show the quadrants upright once `orientation` is undone."""
    undo = {1: None, 2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180,
            4: Image.Transpose.FLIP_TOP_BOTTOM, 5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_90,
            7: Image.Transpose.TRANSVERSE, 8: Image.Transpose.ROTATE_270}[orientation]
    image = quadrants() if undo is None else quadrants().transpose(undo)
    return encode(image, "JPEG", exif=exif(orientation), quality=95, subsampling=0)


def colours(image):
    """The centres of the four quadrants."""
    width, height = image.size
    return [image.getpixel((x, y)) for y in (height // 4, 3 * height // 4) for x in (width // 4, 3 * width // 4)]


def near(found, expected, tolerance=24):
    return all(abs(a - b) <= tolerance for one, other in zip(found, expected, strict=True)
               for a, b in zip(one, other, strict=True))


def zipped():
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("payload.txt", "hello")
    return file.getvalue()


def text_bomb():
    info = PngImagePlugin.PngInfo()
    info.add_text("bomb", "A" * 50_000_000, zip=True)
    return encode(quadrants(), "PNG", pnginfo=info)


def huge_canvas():
    """An animated WebP of two small frames that claims 16,383 x 16,383 pixels."""
    data = encode(quadrants(), "WEBP", save_all=True, append_images=[Image.new("RGB", (32, 32))])
    size = data.index(b"VP8X") + 12
    return data[:size] + 2 * (16_382).to_bytes(3, "little") + data[size + 6:]


def half_transparent():
    image = quadrants("RGBA")
    image.putalpha(0)
    return image


GOOD = {
    "jpeg": encode(quadrants(), "JPEG", quality=95, subsampling=0),
    "progressive jpeg": encode(quadrants(), "JPEG", quality=95, subsampling=0, progressive=True),
    "cmyk jpeg": encode(quadrants("CMYK"), "JPEG", quality=95, subsampling=0),
    "png": encode(quadrants(), "PNG"),
    "palette png": encode(quadrants("P"), "PNG"),
    "webp": encode(quadrants(), "WEBP", lossless=True),
    "bmp": encode(quadrants(), "BMP"),
    "animated gif": encode(quadrants(), "GIF", save_all=True, append_images=[Image.new("RGB", (32, 32))]),
    "animated webp": encode(quadrants(), "WEBP", lossless=True, save_all=True,
                            append_images=[Image.new("RGB", (32, 32))]),
    "animated png": encode(quadrants(), "PNG", save_all=True, append_images=[Image.new("RGB", (32, 32))]),
    "opaque alpha": encode(quadrants("RGBA"), "PNG"),
    "junk icc profile": encode(quadrants(), "JPEG", quality=95, subsampling=0, icc_profile=b"junk" * 50),
    "broken exif": encode(quadrants(), "JPEG", quality=95, subsampling=0, exif=b"Exif\0\0MM\0*\xff\xff\xff\xff"),
    "jpeg and zip": encode(quadrants(), "JPEG", quality=95, subsampling=0) + zipped(),
    **{f"exif {i}": stored(i) for i in range(1, 9)},
}

BAD = {
    "empty": (b"", "empty"),
    "wrong magic": (b"\x00\x01\x02\x03" * 100, "no JPEG"),
    "html": (b"<!doctype html><script>alert(1)</script>", "no JPEG"),
    "svg": (b'<svg xmlns="http://www.w3.org/2000/svg"/>', "no JPEG"),
    "tiff": (encode(quadrants(), "TIFF"), "no JPEG"),
    "truncated jpeg": (encode(quadrants(size=256), "JPEG")[:1500], "truncated"),
    "truncated png": (encode(quadrants(size=64).rotate(7), "PNG")[:-60], None),
    "header only": (encode(quadrants(), "PNG")[:33], None),
    "50,000 x 50,000": (png(50_000, 50_000), "too large|bomb"),
    "169 megapixels": (png(13_000, 13_000), "too large|bomb"),
    "25 megapixels": (png(5_000, 5_001), "too large"),
    "animation of 268 megapixels": (huge_canvas(), "too large|bomb"),
    "1 x 20,000": (png(1, 20_000), "too large"),
    "1 x 100": (encode(Image.new("RGB", (1, 100)), "PNG"), "50:1"),
    "no width": (png(0, 10), None),
    "text bomb": (text_bomb(), "MAX_TEXT"),
    "missing pixels": (png(64, 64, b"\0" * 10), None),
    "larger than 20 MB": (GOOD["png"] + b"\0" * MAX_BYTES, "20 MB"),
}


@pytest.mark.parametrize("kind", GOOD)
def test_good_images_come_out_upright_and_rgb(kind):
    image = safe_open_image(GOOD[kind])
    assert image.mode == "RGB" and image.size == (32, 32)
    assert near(colours(image), [RED, GREEN, BLUE, WHITE], 60 if kind == "palette png" else 24)


@pytest.mark.parametrize("kind", BAD)
def test_bad_images_give_a_reason(kind):
    data, reason = BAD[kind]
    with pytest.raises(BadImage, match=reason):
        safe_open_image(data)


@pytest.mark.parametrize("mode", ["L", "LA", "1", "I;16", "I"])
def test_grey_modes(mode):
    image = Image.new("L", (8, 8), 255)
    if mode in ("I;16", "I"):
        image = Image.fromarray(np.full((8, 8), 65535, np.uint16 if mode == "I;16" else np.int32))
    assert safe_open_image(image.convert(mode) if mode in ("L", "LA", "1") else image).getpixel((3, 3)) == WHITE


@pytest.mark.parametrize("value, expected", [(0, 0), (257, 1), (30000, 117), (65535, 255)])
def test_16_bit_grey_is_scaled_and_not_clipped(value, expected):
    assert safe_open_image(sixteen_bit(value)).getpixel((3, 3)) == (expected,) * 3


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_transparency_shows_white(kind):
    assert colours(safe_open_image(encode(half_transparent(), kind))) == [WHITE] * 4


def test_transparent_palette_entry_shows_white():
    image = quadrants("P")
    assert WHITE in colours(safe_open_image(encode(image, "PNG", transparency=image.getpixel((0, 0)))))[:1]


def test_one_pixel_is_an_image():
    assert safe_open_image(encode(Image.new("RGB", (1, 1), RED), "PNG")).size == (1, 1)


def test_sources(tmp_path):
    path = tmp_path / "photo.jpg"
    path.write_bytes(GOOD["jpeg"])
    for source in (path, str(path), GOOD["jpeg"], io.BytesIO(GOOD["jpeg"]), Image.open(path)):
        assert near(colours(safe_open_image(source)), [RED, GREEN, BLUE, WHITE])


@pytest.mark.parametrize("name", ["missing.jpg", "", "nul\0.jpg", "x" * 300])
def test_what_is_no_file_is_named(tmp_path, name):
    with pytest.raises(BadImage, match=str(tmp_path.name)):
        safe_open_image(tmp_path / name if name else tmp_path)


def test_the_file_is_named(tmp_path):
    path = tmp_path / "broken.png"
    path.write_bytes(b"no image")
    with pytest.raises(BadImage, match="broken.png"):
        safe_open_image(path)


@pytest.mark.parametrize("source", [None, 7, [1, 2]])
def test_other_types_are_refused(source):
    with pytest.raises(BadImage, match="expected a path"):
        safe_open_image(source)


def test_a_float_image_has_no_range():
    with pytest.raises(BadImage, match="floating"):
        safe_open_image(Image.new("F", (8, 8)))


def test_a_large_jpeg_is_decoded_smaller_where_that_is_enough():
    data = encode(quadrants(size=512), "JPEG")
    assert safe_open_image(data).size == (512, 512)
    small = safe_open_image(data, at_least=100)
    assert small.size == (128, 128) and near(colours(small), [RED, GREEN, BLUE, WHITE])


def test_a_picture_that_somebody_else_opened_stays_as_it_is():
    image = Image.open(io.BytesIO(encode(quadrants(size=512), "JPEG")))
    assert safe_open_image(image, at_least=100).size == image.size == (512, 512)


def test_mutated_files_never_raise_anything_else():
    draw = random.Random(0)
    files = [GOOD[kind] for kind in ("jpeg", "progressive jpeg", "cmyk jpeg", "png", "palette png", "webp", "bmp",
                                     "animated gif", "animated webp", "exif 6")]
    for _ in range(500):
        data = bytearray(draw.choice(files))
        for _ in range(draw.randint(1, 8)):
            data[draw.randrange(len(data))] = draw.randrange(256)
        try:
            assert safe_open_image(bytes(data[:draw.choice((None, None, None, len(data) // 2))])).mode == "RGB"
        except BadImage as error:
            assert str(error)


def test_to_uint8_squashes_and_keeps_channels_first():
    image = quadrants().resize((80, 40))
    pixels = to_uint8(image, 16)
    assert pixels.shape == (3, 16, 16) and pixels.dtype == torch.uint8
    assert near(colours(picture(pixels[None].numpy(), 0)), [RED, GREEN, BLUE, WHITE])


def test_normalise_is_the_formula():
    pixels = torch.arange(2 * 3 * 4 * 4).view(2, 3, 4, 4).to(torch.uint8)
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    found = normalise(pixels, mean, std)
    for c in range(3):
        torch.testing.assert_close(found[:, c], (pixels[:, c].float() / 255 - mean[c]) / std[c])


def test_golden_pixels():
    data = encode(quadrants(size=2), "PNG")
    found = normalise(to_uint8(safe_open_image(data), 2)[None], (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    expected = torch.tensor([[[2.2489, -2.1179], [-2.1179, 2.2489]], [[-2.0357, 2.4286], [-2.0357, 2.4286]],
                             [[-1.8044, -1.8044], [2.6400, 2.6400]]])
    torch.testing.assert_close(found[0], expected, atol=1e-4, rtol=0)


def test_nothing_is_normalised_twice():
    pixels = torch.zeros(1, 3, 4, 4, dtype=torch.uint8)
    once = normalise(pixels, (0.5,) * 3, (0.5,) * 3)
    with pytest.raises(ValueError, match="normalised already"):
        normalise(once, (0.5,) * 3, (0.5,) * 3)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def photos(count=8):
    return torch.stack([to_uint8(quadrants(), 32)] * count)


def test_augmentation_is_a_function_of_the_generator():
    first, again = (augment(photos(), 0.6, True, generator()) for _ in range(2))
    assert first.dtype == torch.uint8 and first.shape == (8, 3, 32, 32)
    assert torch.equal(first, again)
    assert not torch.equal(first, augment(photos(), 0.6, True, generator(1)))
    assert not torch.equal(first[0], first[1])  # each image by its own draw


def test_augmentation_does_not_depend_on_batch_mates():
    mates = photos()
    mates[1:] = 0
    assert torch.equal(augment(photos(), 0.6, True, generator())[0], augment(mates, 0.6, True, generator())[0])


def test_augmentation_leaves_its_input_alone():
    pixels = photos()
    augment(pixels, 0.6, True, generator())
    assert torch.equal(pixels, photos())


def test_without_flip_left_stays_left():
    reds = augment(photos(64), 0.9, False, generator()).float()
    assert (reds[:, 0, 4, 4] > reds[:, 0, 4, 27]).all()  # red is left of green
    mirrored = augment(photos(64), 0.9, True, generator()).float()
    share = (mirrored[:, 0, 4, 4] < mirrored[:, 0, 4, 27]).float().mean()
    assert 0.3 < share < 0.7


def test_a_whole_crop_changes_colours_only_slightly():
    pixels = photos(64)
    pixels[:] = 100
    found = augment(pixels, 1.0, False, generator()).float()
    assert found.min() >= 79 and found.max() <= 121 and found.std() > 1


@pytest.mark.parametrize("crop_scale", [0, -1, 1.5])
def test_crop_scale_is_a_share(crop_scale):
    with pytest.raises(ValueError, match="crop_scale"):
        augment(photos(), crop_scale, False, generator())


def test_what_is_no_picture_is_told_in_words():
    with pytest.raises(BadImage, match="image: no JPEG, PNG, WEBP, GIF, BMP picture"):
        safe_open_image(b"<html>no picture</html>")
