"""Where weights come from: folders with half precision alone, and names in the hub's cache."""

import json
import shutil

from generating import generate
from tiny import tiny_motion_adapter, tiny_pipeline, tiny_unet2d
from typer.testing import CliRunner

from videomaker.cli import app
from videomaker.weights.sources import pin, variant_of


def test_a_folder_with_half_precision_files_alone_is_taken(tmp_path):
    folder, adapter = tmp_path / "base", tmp_path / "adapter"
    pipe = tiny_pipeline()
    pipe.save_pretrained(folder)
    index = json.loads((folder / "model_index.json").read_text())
    index["unet"] = ["diffusers", "UNet2DConditionModel"]
    (folder / "model_index.json").write_text(json.dumps(index))
    shutil.rmtree(folder / "unet")
    tiny_unet2d().half().save_pretrained(folder / "unet", variant="fp16")
    for part in ("vae", "text_encoder"):
        shutil.rmtree(folder / part)
        getattr(pipe, part).half().save_pretrained(folder / part, variant="fp16")
    tiny_motion_adapter().half().save_pretrained(adapter, variant="fp16")
    assert variant_of(folder / "unet") == variant_of(adapter) == "fp16"
    code, output, _ = generate(tmp_path, "--model", folder, "--motion-adapter", adapter)
    assert code == 0, output
    pipe.vae.save_pretrained(folder / "vae")
    assert variant_of(folder / "vae") is None  # a plain file beside it comes first
    code, output, _ = generate(tmp_path, "--model", folder, "--motion-adapter", adapter)
    assert code == 0, output


def test_a_hub_name_is_found_in_the_cache_and_pinned(tmp_path, monkeypatch):
    commit = "0123456789abcdef0123456789abcdef01234567"
    snapshot = tmp_path / "hub" / "models--someone--thing" / "snapshots" / commit
    tiny_pipeline().save_pretrained(snapshot)
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text(commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    assert pin("someone/thing") == f"someone/thing@{commit}"
    code, output, record = generate(tmp_path, "--model", "someone/thing")
    assert code == 0, output
    assert record["model"]["source"] == f"someone/thing@{commit}"
    (file,) = (tmp_path / "out").glob("*.json")
    again = CliRunner().invoke(app, ["generate", "--from-json", str(file), "-o", str(tmp_path / "again")])
    assert again.exit_code == 0 and "the same bytes" in again.output
    code, output, _ = generate(tmp_path, "--model", "someone/else")
    assert code == 2 and "not in the hub's cache" in output.replace("\n", " ")
