"""Small copies of the folders that CelebV-Text and VideoBooth publish, with what goes wrong in them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from clips import SIZE, write_video
from PIL import Image


def write_mask(path: Path, value: int = 1) -> None:
    """The label of a subject in the middle of a frame."""
    labels = np.zeros((SIZE, SIZE), np.uint8)
    labels[2:24, 4:20] = value
    Image.fromarray(labels).save(path)


def write_celebv_text(tmp_path: Path) -> Path:
    root = tmp_path / "CelebV-Text"
    ids = ["0-5BrmyFsYM_0", "0-5BrmyFsYM_1", "a_b_c_d_e_f_2", "nodescript_3", "notfetched_4", "damaged____5"]
    root.mkdir()
    entries = {name: {"ytb_id": name.rpartition("_")[0], "bbox": {"top": 0}} for name in ids}
    (root / "celebvtext_info.json").write_text(json.dumps({"clips": entries}))
    for name in ["0-5BrmyFsYM_0_0", "0-5BrmyFsYM_0_1", "0-5BrmyFsYM_1", "a_b_c_d_e_f_2_0", "nodescript_3_0"]:
        write_video(root / "videos" / "celebvtext_6" / f"{name}.mp4", 20)
    (root / "videos" / "celebvtext_6" / "damaged____5_0.mp4").write_text("<html>")
    (root / "videos" / "celebvtext_6" / "unlisted_6_0.mp4").write_text("not looked at")
    for kind, name, text in [
        ("action_dur", "0-5BrmyFsYM_0", "He talks.\n\nHe smiles.\n"),
        ("face40_details_new", "0-5BrmyFsYM_0", "A man with a beard.\nHe talks.\n"),
        ("light_colot_temp", "0-5BrmyFsYM_1", "The light is warm.\n"),
        ("emotion", "a_b_c_d_e_f_2_0", "She is happy.\n"),
        ("emotion", "damaged____5", "x"),
        ("emotion", "notfetched_4", "x"),
        ("notes", "nodescript_3", "not a description"),
    ]:
        (root / "texts" / kind).mkdir(parents=True, exist_ok=True)
        (root / "texts" / kind / f"{name}.txt").write_text(text)
    return root


def write_videobooth(tmp_path: Path) -> Path:
    root = tmp_path / "VideoBooth"
    labels = [
        {"value": 0, "label": "background"},
        {"value": 1, "label": "dog", "logit": 0.8, "box": [4.5, 2, 20, 24.9]},
        {"value": 2, "label": "small dog", "logit": 0.5, "box": [0, 0, 4, 4]},
    ]
    rows = {"100": labels, "101": labels, "102": labels[:1], "103": [{"value": 1, "label": "dog"}], "104": None}
    rows["105"] = [{**labels[1], "box": [9, 9, 3, 3]}]
    (root / "dog").mkdir(parents=True)
    table = "".join(f"{number},pages/0,A dog runs; number {number}\n" for number in rows)
    (root / "dog.csv").write_text("videoid,page_dir,name\n" + table)
    for number, content in rows.items():
        if number != "101":
            write_video(root / "videos" / "pages" / "0" / f"{number}.mp4", 20)
        if content:
            (root / "dog" / number).mkdir()
            (root / "dog" / number / "mask.json").write_text(json.dumps(content))
            (root / "parsing" / number).mkdir(parents=True)
            write_mask(root / "parsing" / number / "mask_1.png")
    return root
