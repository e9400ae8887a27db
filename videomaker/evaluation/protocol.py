"""How videos are measured where the paper leaves it open: as the paper's sources say, or as its authors' code does."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from videomaker.errors import InputError

METRICS = ("clip_t", "clip_i", "dino_i", "face", "t_cons", "dd")
AGAINST_REFERENCE = ("clip_i", "dino_i", "face")
TITLES = {
    "clip_t": "CLIP-T",
    "clip_i": "CLIP-I",
    "dino_i": "DINO-I",
    "face": "Face",
    "t_cons": "T.Cons",
    "dd": "Dynamic degree",
}


@dataclass(frozen=True)
class Protocol:
    """What the measures depend on beside the networks. Each value is printed in every report.

    Args:
        name: `"paper"` or `"authors"`.
        face_channels: the order in which pictures reach the face networks, which take BGR.
        reference_face: which face of a reference counts; of a frame it is always the largest.
        reference_face_side: the reference is stretched to a square of so many pixels before its face is looked for;
            0 leaves it as it is.
        flow_through_gif: whether the dynamic degree is measured on frames that went through a GIF file of diffusers'.
        flow_rate: frames a second between which flow is measured, by VBench's stride; 0 takes every frame.
    """

    name: str
    face_channels: Literal["bgr", "rgb"]
    reference_face: Literal["largest", "first"]
    reference_face_side: int
    flow_through_gif: bool
    flow_rate: int

    def describe(self) -> list[str]:
        """One line a choice, for the foot of a report."""
        stride = f"VBench's stride to {self.flow_rate} frames a second" if self.flow_rate else "every frame, no stride"
        gif = "through a GIF as diffusers writes it"
        side = f", stretched to {self.reference_face_side} pixels" if self.reference_face_side else ""
        return [
            "CLIP-T, CLIP-I, T.Cons: cosines of CLIP embeddings of all frames, not clipped; the reference as it is, "
            "before it is fitted to the video",
            "DINO-I: cosines of DINO's class token of the last hidden state",
            f"Face: largest face of a frame, {self.reference_face} face of the reference{side}; channels in the order "
            f"{self.face_channels.upper()}; frames without a face left out, and videos without any",
            f"Dynamic degree: {stride}; frames {gif if self.flow_through_gif else 'as they are'}; a pair "
            "moves above 6·min(H, W)/256 pixels (mean of the largest 5 %), a video with round(4·N/16) such pairs",
            "Averages: over a subject's videos, then over subjects; intervals: a bootstrap over both",
        ]


PROTOCOLS = {
    "paper": Protocol("paper", "bgr", "largest", 0, False, 8),
    # github.com/WuTao-CS/PhotoMaker, eval/ and eval_dd.py: what the published numbers were made with, as far as known
    "authors": Protocol("authors", "rgb", "first", 512, True, 0),
}


def protocol_named(name: str) -> Protocol:
    """One of `PROTOCOLS`.

    Raises:
        InputError: there is none of that name.
    """
    if name not in PROTOCOLS:
        raise InputError(f"protocol {name!r} is unknown: choose from {', '.join(PROTOCOLS)}")
    return PROTOCOLS[name]
