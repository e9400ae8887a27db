"""A small synthetic world whose ground truth is known exactly: pixel-art creatures moving over backgrounds.

Everything is drawn on a 16×16 canvas and enlarged twice to 32×32 video. Creatures move in steps of one cell:
2 canvas pixels, or 4 video pixels, which is one latent pixel of the small autoencoder.
A creature's identity is its silhouette, its palette of three colours and its pattern. The parity of the pattern's
bits decides whether it belongs to the training or to the test split, so the two never meet.
"""

import colorsys
from dataclasses import dataclass
from typing import Literal

import numpy as np

CANVAS = 16  # canvas pixels per side
ENLARGEMENT = 2  # video pixels per canvas pixel
CELL = 2  # canvas pixels per step of a motion
CREATURE = 8  # canvas pixels per side of a big creature
NUM_FRAMES = 8
FPS = 8
GROUND = 10  # canvas row where a background's lower part begins
FEET = 14  # canvas row below a resting creature

SIZES = {"big": 1, "small": 2}  # every how many canvas pixels a creature is sampled

# name: upper colour, lower colour, accent
BACKGROUNDS: dict[str, tuple[tuple[int, int, int], ...]] = {
    "a green meadow": ((150, 220, 250), (70, 170, 60), (250, 240, 120)),
    "a yellow desert": ((255, 225, 170), (225, 180, 70), (190, 140, 50)),
    "a blue sea": ((190, 230, 255), (30, 90, 200), (240, 250, 255)),
    "a night sky": ((15, 15, 50), (40, 30, 80), (250, 250, 200)),
    "a grey city": ((200, 205, 210), (90, 90, 95), (130, 135, 150)),
    "a snowy hill": ((170, 190, 215), (245, 250, 255), (210, 225, 240)),
    "a pink dusk": ((250, 150, 170), (120, 60, 110), (255, 210, 150)),
    "a dark forest": ((20, 60, 40), (50, 40, 25), (40, 100, 50)),
}


def _glide(start: int, stop: int) -> tuple[int, ...]:
    return tuple(np.linspace(start, stop, NUM_FRAMES).round().astype(int).tolist())


_REST, _HOPS, _LEAPS = (0,) * 8, (0, -1) * 4, (0, -1, -2, -1) * 2

# name: offset from the resting place in every frame, in cells: to the right, downwards
MOTIONS: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {
    "standing": (_REST, _REST),
    "jumping": (_REST, _LEAPS),
    "walking to the left": (_glide(2, -2), _REST),
    "walking to the right": (_glide(-2, 2), _REST),
    "hopping to the left": (_glide(2, -2), _HOPS),
    "hopping to the right": (_glide(-2, 2), _HOPS),
    "flying up": (_REST, _glide(0, -3)),
    "falling down": (_REST, _glide(-3, 0)),
}

Split = Literal["train", "test"]


@dataclass(frozen=True)
class Creature:
    """What a creature looks like when it faces right."""

    colours: np.ndarray  # [8, 8, 3] uint8
    silhouette: np.ndarray  # [8, 8] bool
    palette: np.ndarray  # [3, 3] uint8: body, marking, trim

    def view(self, *, size: str = "big", mirrored: bool = False) -> "Creature":
        """The creature as seen from afar (`small` is half as large) or from the other side."""
        step = SIZES[size]
        window = slice(step - 1, None, step), slice(None, None, step)
        turn = slice(None, None, -1 if mirrored else 1)
        return Creature(self.colours[window][:, turn], self.silhouette[window][:, turn], self.palette)


@dataclass(frozen=True)
class Clip:
    """Everything that a clip's frames, masks and caption are drawn from."""

    creature: Creature
    motion: str
    background: str
    size: str = "big"

    @property
    def caption(self) -> str:
        """The sentence that describes it."""
        return caption(self.size, self.motion, self.background)

    @property
    def mirrored(self) -> bool:
        """Whether the creature looks to the left."""
        return self.motion.endswith("left")

    @property
    def track(self) -> list[tuple[int, int]]:
        """Row and column of the creature's upper left canvas pixel in every frame."""
        side = CREATURE // SIZES[self.size]
        right, down = MOTIONS[self.motion]
        return [(FEET - side + CELL * y, (CANVAS - side) // 2 + CELL * x) for x, y in zip(right, down, strict=True)]


def caption(size: str, motion: str, background: str) -> str:
    """The grammar of the world."""
    return f"a {size} creature {motion} over {background}"


SMALL = 0.25  # share of small creatures in what is drawn at random, unless another is asked for


def random_clip(rng: np.random.Generator, *, split: Split, small: float = SMALL) -> Clip:
    """A creature of the split with any motion, background and size; a share of `small` of them is small."""
    return Clip(
        creature=random_creature(rng, split=split),
        motion=str(rng.choice(list(MOTIONS))),
        background=random_background(rng),
        size="small" if rng.random() < small else "big",
    )


def random_background(rng: np.random.Generator, *, but: str | None = None) -> str:
    """The name of any background `but` one."""
    return str(rng.choice([name for name in BACKGROUNDS if name != but]))


def random_creature(
    rng: np.random.Generator,
    *,
    split: Split,
    silhouette: np.ndarray | None = None,
    palette: np.ndarray | None = None,
) -> Creature:
    """A creature of the split; what is not given is random."""
    silhouette = random_silhouette(rng) if silhouette is None else silhouette
    body, marking, trim = palette = random_palette(rng) if palette is None else palette
    colours = np.where(_symmetric(random_pattern(rng, split=split))[..., None], marking, body)
    colours[[0, -1]] = trim
    colours[2:4, 2], colours[2:4, 5] = 255, 255
    colours[3, 3], colours[3, 6] = 0, 0  # the pupils tell which way it looks
    return Creature(colours, silhouette, palette)


def random_silhouette(rng: np.random.Generator) -> np.ndarray:
    """Ears, a head that holds the eyes, a body of changing width and feet; symmetric, `[8, 8]` bool."""
    widths = np.concatenate([rng.integers(3, 5, size=4), rng.integers(2, 5, size=2)])
    half = np.zeros((CREATURE, CREATURE // 2), dtype=bool)
    half[1:-1] = np.arange(4) >= 4 - widths[:, None]
    half[0] = _some_bits(rng) & half[1]
    half[-1] = _some_bits(rng) & half[-2]
    return _symmetric(half)


def random_pattern(rng: np.random.Generator, *, split: Split) -> np.ndarray:
    """Blotches over the left half, `[8, 4]` bool; the parity of their number is the split's."""
    coarse = rng.standard_normal((4, 2))
    field = np.kron(coarse, np.ones((2, 2))) + 0.5 * rng.standard_normal((8, 4))
    pattern = field > np.median(field)
    if split_of(pattern) != split:
        weakest = np.unravel_index(np.abs(field - np.median(field)).argmin(), field.shape)
        pattern[weakest] = ~pattern[weakest]
    return pattern


def split_of(pattern: np.ndarray) -> Split:
    """The split that a pattern belongs to: even parity is for training."""
    return "train" if pattern.sum() % 2 == 0 else "test"


def random_palette(rng: np.random.Generator) -> np.ndarray:
    """Colours of body, marking and trim, `[3, 3]` uint8; the others' hues are apart from the body's."""
    hue = rng.random() + np.array([0.0, rng.uniform(0.2, 0.8), rng.uniform(0.2, 0.8)])
    saturation = rng.uniform(0.5, 1.0, size=3)
    value = rng.uniform(0.5, 1.0, size=3)
    colours = [colorsys.hsv_to_rgb(*colour) for colour in zip(hue % 1, saturation, value, strict=True)]
    return (255 * np.array(colours)).astype(np.uint8)


def _some_bits(rng: np.random.Generator) -> np.ndarray:
    return np.array([1, 2, 4, 8]) & rng.integers(1, 16) > 0


def _symmetric(half: np.ndarray) -> np.ndarray:
    return np.concatenate([half, half[:, ::-1]], axis=1)


def draw_background(name: str | None) -> np.ndarray:
    """The canvas before anybody is on it, `[16, 16, 3]` uint8; `None` is white."""
    if name is None:
        return np.full((CANVAS, CANVAS, 3), 255, dtype=np.uint8)
    upper, lower, accent = BACKGROUNDS[name]
    canvas = np.empty((CANVAS, CANVAS, 3), dtype=np.uint8)
    canvas[:GROUND], canvas[GROUND:] = upper, lower
    # Accents stand where the name's place in the list puts them, so backgrounds differ in texture as well.
    place = list(BACKGROUNDS).index(name)
    canvas[GROUND + 1 :: 2, place % 4 :: 4] = accent
    canvas[1 + place % 3, (place + 2) % 5 :: 5] = accent
    return canvas


def draw_clip(clip: Clip) -> tuple[np.ndarray, np.ndarray]:
    """Frames `[8, 16, 16, 3]` uint8 and masks `[8, 16, 16]` bool on the canvas."""
    view = clip.creature.view(size=clip.size, mirrored=clip.mirrored)
    side = len(view.silhouette)
    frames = np.repeat(draw_background(clip.background)[None], NUM_FRAMES, axis=0)
    masks = np.zeros(frames.shape[:3], dtype=bool)
    for frame, mask, (row, column) in zip(frames, masks, clip.track, strict=True):
        window = slice(row, row + side), slice(column, column + side)
        mask[window] = view.silhouette
        frame[window][view.silhouette] = view.colours[view.silhouette]
    return frames, masks


def draw_portrait(creature: Creature, background: str | None = None) -> tuple[np.ndarray, np.ndarray]:
    """A reference: the creature in the middle, on a background or on white, and its mask.

    Returns:
        The canvas `[16, 16, 3]` uint8 and the mask `[16, 16]` bool.
    """
    canvas, mask = draw_background(background), np.zeros((CANVAS, CANVAS), dtype=bool)
    middle = (slice((CANVAS - CREATURE) // 2, (CANVAS + CREATURE) // 2),) * 2
    mask[middle] = creature.silhouette
    canvas[middle][creature.silhouette] = creature.colours[creature.silhouette]
    return canvas, mask


def enlarge(canvas: np.ndarray) -> np.ndarray:
    """Canvases `[..., 16, 16, 3]` or masks `[..., 16, 16]` as video: every pixel becomes 2×2."""
    axis = -3 if canvas.shape[-1] == 3 else -2
    return canvas.repeat(ENLARGEMENT, axis=axis).repeat(ENLARGEMENT, axis=axis + 1)
