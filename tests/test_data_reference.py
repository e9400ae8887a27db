"""The reference of a sample: the subject on white, augmented."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from clips import (
    SIZE,
    config_of,
    masked_clips,
)
from PIL import Image

from videomaker.data.dataset import build_dataset
from videomaker.data.reference import NONE, Augmentation, affine_on_white, augment_reference, crop_to_box, mask_on_white


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return masked_clips(tmp_path_factory.mktemp("clips"))


def test_affine_moves_the_way_it_says():
    image = torch.ones(3, 40, 60)
    image[:, 19:21, 49:51] = -1  # 20 px right of the centre
    moved = affine_on_white(image, angle=math.pi / 2, scale=0.5, shift=(0.1, -0.2))
    rows, columns = torch.nonzero(1 - moved[0] > 1e-6, as_tuple=True)
    # Clockwise: 10 px below the centre (after scaling), then 6 px right and 8 px up.
    assert (rows.float().mean().item(), columns.float().mean().item()) == pytest.approx((21.5, 35.5), abs=0.01)


def test_affine_fills_with_exact_white():
    moved = affine_on_white(torch.full((3, 24, 32), -0.7), angle=0.4, scale=0.6, shift=(0.1, 0.0))
    assert (moved[:, [0, 0, -1, -1], [0, -1, 0, -1]] == 1).all()
    assert moved.max() == 1
    assert moved[:, 12, 17].tolist() == pytest.approx([-0.7] * 3, abs=1e-6)


def test_augmentation_follows_its_ranges():
    image = torch.rand(3, 16, 16) * 2 - 1
    flips = Augmentation(flip_probability=1.0, rotation=0, translation=0, scale_min=1, scale_max=1)
    assert torch.equal(augment_reference(image, flips, np.random.default_rng(0)), image.flip(-1))
    assert torch.equal(augment_reference(image, NONE, np.random.default_rng(0)), image)
    first, again, other = (augment_reference(image, Augmentation(), np.random.default_rng(s)) for s in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_reference_is_the_subject_on_white(folder):
    crops = config_of(folder, crop_to_subject=True, augmentation=NONE)
    whole = dataclasses.replace(crops, crop_to_subject=False)
    raw = dataclasses.replace(whole, highlight=False)
    crop, whole, raw = (build_dataset(c, seed=0)[0, 3]["reference"][:, 0] for c in (crops, whole, raw))
    inside = torch.zeros(SIZE, SIZE, dtype=torch.bool)
    inside[8:24, 4:20] = True
    assert (whole[:, ~inside] == 1).all()
    assert torch.equal(whole[:, inside], raw[:, inside])
    assert (raw[:, ~inside] < 1).any()
    assert crop.shape == raw.shape
    assert (crop < 0).float().mean() > 0.9 * (whole[:, inside] < 0).float().mean()


def test_masks_and_boxes_must_fit():
    image = Image.new("RGB", (20, 10))
    with pytest.raises(ValueError, match="the mask has 10x10 pixels, its picture 20x10"):
        mask_on_white(image, Image.new("L", (10, 10)))
    with pytest.raises(ValueError, match="no pixel of a picture of 20x10"):
        crop_to_box(image, (20.5, 0, 30, 10))
    assert crop_to_box(image, (-3.2, 1.9, 100.0, 9.9)).size == (20, 8)
