"""One reader of labels: a mask means its labels, not its looks; one of pictures, wherever they come from."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image

from videomaker.errors import InputError
from videomaker.pictures import load_labels, load_reference, python_picture

SUBJECT = np.zeros((8, 8), bool)
SUBJECT[2:6, 3:7] = True


def png(image: Image.Image, form: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def palette(colours: list[int]) -> Image.Image:
    image = Image.fromarray(SUBJECT.astype(np.uint8))
    image = Image.frombytes("P", image.size, image.tobytes())
    image.putpalette(colours)
    return image


def cut_out(mode: str) -> Image.Image:
    grey = np.full((8, 8), 90, np.uint8)
    alpha = SUBJECT.astype(np.uint8) * 255
    return Image.fromarray(np.stack([*[grey] * (3 if mode == "RGBA" else 1), alpha], -1), mode)


MASKS = {
    "8 bits, 255": Image.fromarray(SUBJECT.astype(np.uint8) * 255),
    "8 bits, 1": Image.fromarray(SUBJECT.astype(np.uint8)),
    "16 bits, 1": Image.fromarray(SUBJECT.astype(np.uint16)),
    "16 bits, 300": Image.fromarray(SUBJECT.astype(np.uint16) * 300),
    "one bit": Image.fromarray(SUBJECT),
    "palette, dark red": palette([0, 0, 0, 128, 0, 0]),
    "palette, black on white": palette([255, 255, 255, 0, 0, 0]),
    "colour": Image.fromarray(np.where(SUBJECT[..., None], [0, 0, 60], 0).astype(np.uint8)),
    "RGBA": cut_out("RGBA"),
    "LA": cut_out("LA"),
}


@pytest.mark.parametrize("kind", MASKS)
def test_every_kind_of_mask_shows_the_subject(kind):
    labels = load_labels(png(MASKS[kind]))
    assert labels.dtype == np.int32 and ((labels > 0) == SUBJECT).all()


def test_a_lossy_mask_is_its_bright_half():
    big = Image.fromarray(SUBJECT.astype(np.uint8) * 255).resize((64, 64), Image.Resampling.NEAREST)
    labels = load_labels(png(big, "JPEG"))
    assert ((labels > 0) == (np.asarray(big) > 0)).all()


def test_bytes_files_and_pointers(tmp_path):
    image = Image.fromarray(np.full((8, 8), 30000, np.uint16))
    (tmp_path / "deep.png").write_bytes(png(image))
    same = [load_reference(source) for source in (tmp_path / "deep.png", png(image), io.BytesIO(png(image)))]
    assert len({one.tobytes() for one in same}) == 1
    (tmp_path / "p.png").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    with pytest.raises(InputError, match="Git LFS"):
        load_reference(tmp_path / "p.png")


def test_a_lossless_webp_keeps_small_labels():
    labels = Image.fromarray(np.where(SUBJECT[..., None], [1, 1, 1], 0).astype(np.uint8))
    assert ((load_labels(png(labels, "WEBP", lossless=True)) > 0) == SUBJECT).all()


def test_arrays_of_another_byte_order():
    values = np.linspace(0, 1, 192).reshape(8, 8, 3)
    assert (python_picture(values.astype(">f4")).numpy() == values.astype("f4").transpose(2, 0, 1)).all()


@pytest.mark.parametrize(
    "odd",
    [
        torch.zeros(3, 8, 8).to_sparse(), torch.zeros(3, 8, 8, device="meta"), Image.new("RGB", (0, 8)),
        np.zeros((3, 8, 8), np.uint8), np.full((8, 8), 1.0001), np.zeros((8, 8), np.uint16), None,
    ],
)  # fmt: skip
def test_what_is_no_picture_in_python(odd):
    with pytest.raises(InputError, match="reference_image"):
        python_picture(odd)
