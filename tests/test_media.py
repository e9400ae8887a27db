"""Pictures in, videos out."""

import contextlib
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from videomaker import media
from videomaker.errors import InputError

RED, WHITE = (255, 0, 0), (255, 255, 255)


def blocks(num_frames: int = 8, height: int = 64, width: int = 64, seed: int = 0) -> np.ndarray:
    """Video of flat 16×16 blocks, a different colour each."""
    colours = np.random.default_rng(seed).integers(0, 256, (num_frames, height // 16 + 1, width // 16 + 1, 3), np.uint8)
    return colours.repeat(16, axis=1).repeat(16, axis=2)[:, :height, :width]


def png_header(path: Path, width: int, height: int) -> Path:
    """A PNG that claims a size; its few bytes of pixels are those of a picture of one pixel."""
    import struct
    import zlib

    Image.new("RGB", (1, 1)).save(path)
    data = bytearray(path.read_bytes())
    data[16:24] = struct.pack(">II", width, height)
    data[29:33] = struct.pack(">I", zlib.crc32(bytes(data[12:29])))
    path.write_bytes(data)
    return path


def unusable(folder: Path, kind: str) -> Path:
    """A file of each kind that is no reference."""
    path = folder / "reference.png"
    if kind == "folder":
        path.mkdir()
    elif kind == "empty":
        path.touch()
    elif kind == "text":
        path.write_text("this is not a picture")
    elif kind == "postscript":
        path.write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n%%EOF\n")
    elif kind == "truncated":
        Image.fromarray(blocks(1)[0]).save(path)
        path.write_bytes(path.read_bytes()[:150])
    elif kind == "bomb":
        png_header(path, 50_000, 50_000)
    elif kind == "large":
        png_header(path, 9_000, 9_000)
    elif kind == "no width":
        png_header(path, 0, 8)
    elif kind == "animated":
        Image.new("RGB", (8, 8)).save(path, "GIF", save_all=True, append_images=[Image.new("RGB", (8, 8), RED)])
    elif kind == "float":
        Image.fromarray(np.zeros((8, 8), np.float32)).save(path, "TIFF")
    return path


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("missing", "does not exist"),
        ("folder", "not a regular file"),
        ("empty", "0 bytes"),
        ("text", "not one of PNG"),
        ("postscript", "not one of PNG"),
        ("truncated", "truncated"),
        ("bomb", "scale it down"),
        ("large", "9000x9000 pixels"),
        ("no width", "cannot be read"),
        ("animated", "holds 2 pictures"),
        ("float", "32-bit"),
    ],
)
def test_refused_references(tmp_path, kind, words):
    path = unusable(tmp_path, kind)
    with pytest.raises(InputError, match=words) as caught:
        media.load_reference(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_pixels_are_counted_before_they_are_decoded(tmp_path, monkeypatch):
    path = png_header(tmp_path / "large.png", 9_000, 9_000)
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("decoded"))
    with pytest.raises(InputError):
        media.load_reference(path)


def test_reference_is_turned_as_its_exif_says(tmp_path):
    image = Image.new("RGB", (40, 20), WHITE)
    image.paste(RED, (0, 0, 20, 20))
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn clockwise to be shown upright
    image.save(tmp_path / "turned.png", exif=exif)
    upright = media.load_reference(tmp_path / "turned.png")
    assert upright.size == (20, 40)
    assert upright.getpixel((10, 5)) == RED and upright.getpixel((10, 35)) == WHITE


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("file_format", ["PNG", "JPEG", "WEBP", "TIFF", "AVIF"])
def test_damaged_files_are_read_or_refused(tmp_path, file_format):
    path = tmp_path / "damaged.png"
    Image.fromarray(blocks(1)[0]).save(path, file_format)
    whole, generator = path.read_bytes(), np.random.default_rng(0)
    for _ in range(40):
        data = bytearray(whole)
        for place in generator.integers(0, min(len(data), 300), 8):
            data[place] = generator.integers(256)
        path.write_bytes(data)
        with contextlib.suppress(InputError):  # and nothing else
            media.load_reference(path)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparency_lies_over_white(tmp_path, mode):
    image = Image.new("RGBA", (8, 8), (0, 0, 0, 0))
    image.paste((0, 0, 0, 255), (0, 0, 4, 8))
    image.convert(mode).save(tmp_path / "alpha.png")
    flat = media.load_reference(tmp_path / "alpha.png")
    assert flat.mode == "RGB"
    assert flat.getpixel((1, 1)) == (0, 0, 0) and flat.getpixel((6, 1)) == WHITE


def test_sixteen_bit_grey_keeps_its_range(tmp_path):
    Image.fromarray(np.array([[0, 32896, 65535]], np.uint16)).save(tmp_path / "grey.png")
    grey = np.asarray(media.load_reference(tmp_path / "grey.png"))
    assert grey[0, :, 0].tolist() == [0, 128, 255]


def test_a_photograph_with_a_preview_is_a_still_picture(tmp_path):
    image = Image.new("RGB", (16, 16), RED)
    image.save(tmp_path / "photo.jpg", "MPO", save_all=True, append_images=[image.resize((8, 8))])
    assert media.load_reference(tmp_path / "photo.jpg").size == (16, 16)


@pytest.mark.parametrize(("fit", "corner", "middle"), [("stretch", RED, RED), ("pad", WHITE, RED), ("crop", RED, RED)])
def test_a_wide_reference_gets_the_shape_of_the_video(fit, corner, middle):
    fitted = media.fit_reference(Image.new("RGB", (80, 40), RED), 32, 32, fit)
    assert fitted.size == (32, 32)
    assert fitted.getpixel((0, 0)) == corner and fitted.getpixel((16, 16)) == middle


def test_small_drawings_stay_sharp():
    drawing = blocks(1, 16, 16)[0]
    drawing[:, 8:] = 0
    fitted = np.asarray(media.fit_reference(Image.fromarray(drawing), 64, 64, "stretch"))
    assert (fitted == drawing.repeat(4, axis=0).repeat(4, axis=1)).all()


@pytest.mark.parametrize(("height", "width"), [(64, 64), (48, 80), (65, 63)])
def test_mp4_plays_everywhere(tmp_path, height, width):
    frames, path = blocks(8, height, width), tmp_path / "video.mp4"
    media.write_mp4(path, frames, fps=8)
    data = path.read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")
    with av.open(path) as container:
        stream = container.streams.video[0]
        codec = stream.codec_context
        assert (codec.name, codec.pix_fmt) == ("h264", "yuv420p")
        assert codec.width % 2 == codec.height % 2 == 0
        assert (stream.frames, stream.average_rate, stream.start_time) == (8, 8, 0)
        assert float(stream.duration * stream.time_base) == 1.0
    # Colour is stored at half resolution: compare inside the blocks. There, rounding to limited-range YUV costs up
    # to 2 levels in RGB and the quantiser of CRF 17 a few more.
    centre = np.s_[:, 8:height:16, 8:width:16]
    read = media.read_frames(path).astype(int)
    assert np.abs(read[centre] - frames[centre]).max() <= 6


def test_mp4_bytes_are_reproducible(tmp_path):
    for name in ("a.mp4", "b.mp4"):
        media.write_mp4(tmp_path / name, blocks(), fps=7.5)
    assert (tmp_path / "a.mp4").read_bytes() == (tmp_path / "b.mp4").read_bytes()


def test_gif_keeps_colours_and_time(tmp_path):
    frames, path = blocks(num_frames=7), tmp_path / "video.gif"  # 175 blocks: fewer colours than a palette holds
    media.write_gif(path, frames, fps=8)
    assert (media.read_frames(path) == frames).all()
    with Image.open(path) as image:
        durations = [image.seek(index) or image.info["duration"] for index in range(image.n_frames)]
    assert sum(durations) == pytest.approx(7 / 8 * 1000, abs=5)  # hundredths of a second


def test_frames_are_lossless(tmp_path):
    media.write(tmp_path, blocks(), "frames", fps=8)
    assert (media.read_frames(tmp_path) == blocks()).all()


def test_frames_of_others_come_in_the_order_of_their_numbers(tmp_path):
    """Without leading zeros, with a prefix, in capitals; what a Mac leaves beside is no frame."""
    for number in (10, 2, 1, 9):
        suffix = "PNG" if number == 9 else "png"
        Image.new("RGB", (2, 2), (number, 0, 0)).save(tmp_path / f"frame_{number}.{suffix}", "PNG")
    (tmp_path / "._frame_1.png").write_bytes(b"no picture")
    assert media.read_frames(tmp_path)[:, 0, 0, 0].tolist() == [1, 2, 9, 10]


@pytest.mark.parametrize(("side", "factor"), [(32, 8), (64, 4), (100, 3), (128, 2), (129, 1), (512, 1)])
def test_tiny_videos_are_enlarged(side, factor):
    assert media.default_upscale(side, 2 * side) == factor
    assert media.enlarge(np.zeros((2, 4, 6, 3)), factor).shape == (2, 4 * factor, 6 * factor, 3)


def test_contact_sheet_shows_reference_and_frames():
    frames = np.zeros((16, 64, 64, 3), np.uint8)
    frames[-1] = RED
    row = media.sheet_row([Image.new("RGB", (64, 64), WHITE)], frames, "a caption")
    sheet = media.contact_sheet([row, row])
    middle = media.SHEET_GAP + media.SHEET_TILE // 2
    assert sheet.getpixel((middle, middle)) == WHITE
    assert sheet.getpixel((sheet.width - middle, middle)) == RED
    assert sheet.height > 2 * media.SHEET_TILE
