"""Negative prompts by name: what published results of this kind of model ask to leave out, in this project's words."""

from __future__ import annotations

from videomaker.errors import InputError

NEGATIVE_PRESETS = {
    "people": (
        "deformed face, distorted features, crossed eyes, extra limbs, missing fingers, fused fingers, deformed hands, "
        "wrong anatomy, several people, plastic skin, cartoon, painting, drawing, blurred, low resolution, noise, "
        "compression artefacts, text, watermark, frame, cut off"
    ),
    "objects": (
        "deformed, wrong proportions, missing parts, doubled parts, several subjects, cartoon, painting, drawing, "
        "blurred, low resolution, noise, compression artefacts, flicker, text, watermark, frame, cut off"
    ),
}


def negative_prompt(text: str | None, preset: str | None) -> str | None:
    """The text given, or the preset's.

    Raises:
        InputError: both are given, or there is no such preset.
    """
    if preset is None:
        return text
    if text is not None:
        raise InputError("give --negative-prompt or --negative-preset, one of the two")
    if preset not in NEGATIVE_PRESETS:
        raise InputError(f"negative preset {preset!r} is unknown: choose from {', '.join(NEGATIVE_PRESETS)}")
    return NEGATIVE_PRESETS[preset]
