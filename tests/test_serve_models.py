"""Several models at once: workers of their own, LoRAs by name on a loaded base, each told by /v1/models."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path

import httpx2
import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from serving import PICTURE, ServerProcess, client_of, make_state, make_worker, submit, wait_for
from tiny import tiny_lora, tiny_pipeline

from videomaker import default_model_path, media
from videomaker.errors import InputError
from videomaker.jobs.prepare import prepare
from videomaker.jobs.request import ModelSpec, Recipe
from videomaker.serve.config import Shape, load_config
from videomaker.serve.database import Database
from videomaker.serve.model_files import localised
from videomaker.serve.model_renderer import ModelRenderer
from videomaker.serve.models import describe_model
from videomaker.serve.registry import Registry
from videomaker.serve.renderer import RenderJob
from videomaker.serve.state import State

SETTINGS = {"size": "32x32", "num_frames": "3", "num_inference_steps": "2", "seed": "7"}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Two tiny models and a LoRA of the first, as files."""
    folder = tmp_path_factory.mktemp("models")
    for seed, name in enumerate(("fox", "owl")):
        pipe = tiny_pipeline(seed=seed)
        pipe.save_pretrained(folder / name)
        if name == "fox":
            save_file(tiny_lora(pipe), folder / "ink.safetensors")
    return folder


def table(folder, **changes):
    settings = {"lora": "ink", "owl": "owl", "file": folder / "ink.safetensors", **changes}
    return f"""
    batch = 1
    [[models]]
    model = "{folder}/fox"
    devices = ["cpu"]
    [[models.loras]]
    name = "{settings["lora"]}"
    file = "{settings["file"]}"
    scale = 0.5
    [[models]]
    name = "{settings["owl"]}"
    model = "{folder}/owl"
    batch = 2
    """


def write(folder, text):
    (folder / "serve.toml").write_text(text)
    return folder / "serve.toml"


def test_each_model_has_what_the_settings_say_and_its_own(models, tmp_path):
    config = load_config(write(tmp_path, table(models)), weights="w.safetensors", only="owl")
    fox, owl = config.served
    assert config.names == ["fox", "ink", "owl"]
    assert (fox.name, fox.batch, fox.devices, fox.models) == ("fox", 1, ("cpu",), ())
    assert (owl.name, owl.batch, owl.devices, owl.loras) == ("owl", 2, (), ())
    assert fox.weights == owl.weights == "w.safetensors"
    assert [one.name for one in config.served_here] == ["owl"]


@pytest.mark.parametrize(
    "changes, flags, words",
    [
        ({"owl": "fox"}, {}, "two models are called 'fox'"),
        ({"lora": "owl"}, {}, "two models are called 'owl'"),
        ({}, {"model": "elsewhere"}, "say model, model_name and loras there"),
        ({}, {"only": "cat"}, "only names cat"),
    ],
)
def test_what_cannot_be_meant_is_refused(models, tmp_path, changes, flags, words):
    with pytest.raises(InputError, match=words):
        load_config(write(tmp_path, table(models, **changes)), **flags)


@pytest.mark.parametrize(
    ("part", "name", "value"),
    [
        ("unet", "sample_size", "x"),
        ("unet", "motion_max_seq_length", [8]),
        ("vae", "block_out_channels", 5),
        ("unet", "sample_size", 0),
        ("scheduler", "num_train_timesteps", "x"),
    ],
)
def test_a_model_whose_configurations_are_damaged_is_refused_at_the_start(tmp_path, part, name, value):
    shutil.copytree(default_model_path(), tmp_path / "model")
    file = next((tmp_path / "model" / part).glob("*config.json"))
    file.write_text(json.dumps(json.loads(file.read_text()) | {name: value}))
    with pytest.raises(InputError, match=r"configurations of .* cannot be used"):
        describe_model(load_config(model=str(tmp_path / "model"), data=str(tmp_path / "data")))


def test_a_lora_that_is_not_there_is_refused(models, tmp_path):
    state = make_state(tmp_path, **read(write(tmp_path, table(models, file=models / "none.safetensors"))))
    with pytest.raises(InputError, match=r"LoRA 'ink': file .*none.safetensors does not exist"):
        state.models  # noqa: B018


def read(file):
    config = load_config(file)
    return {"models": [model.model_dump() for model in config.models]}


def test_jobs_go_to_the_workers_of_their_model(models, tmp_path):
    state = make_state(tmp_path, batch_wait=0, **read(write(tmp_path, table(models))))
    with client_of(state) as client:
        ids = {name: submit(client, model=name, **SETTINGS).json()["id"] for name in ("fox", "ink", "owl")}
        first = submit(client, **{**SETTINGS, "seed": "8"}).json()
        assert first["model"] == "fox"
        unknown = submit(client, model="cat", **SETTINGS)
        assert unknown.status_code == 404 and unknown.json()["error"]["code"] == "model_not_found"
        assert unknown.json()["error"]["message"] == "there is no model 'cat': choose 'fox', 'ink', 'owl'"
        rows = state.listing.get_many(ids.values())
        assert [rows[ids[name]].model for name in ids] == ["fox", "fox", "owl"]
        assert len({row.bucket for row in rows.values()}) == 3  # a pass has one LoRA, or none
        owl = make_worker(State(state.config.served[1]))
        assert owl.work_once() and not owl.work_once()
        assert client.get(f"/v1/videos/{ids['owl']}").json()["status"] == "completed"
        assert client.get(f"/v1/videos/{ids['ink']}").json()["status"] == "queued"


def test_two_models_and_a_lora_through_a_server(models, tmp_path):
    config = write(tmp_path, table(models))
    with ServerProcess(tmp_path / "data", "--config", str(config), renderer="model", lease_seconds=5) as server:
        server.wait_ready()
        client = server.client()
        told = {model["id"]: model for model in client.get("/v1/models").json()["data"]}
        assert list(told) == ["fox", "ink", "owl"] and all(model["ready"] for model in told.values())
        assert told["ink"]["parent"] == "fox" and told["owl"]["parent"] is None
        assert client.get("/v1/models/ink").json()["id"] == "ink"
        sent = ["fox", "ink", "owl", "fox"]
        ids = [submit(client, model=name, **SETTINGS).json()["id"] for name in sent]
        videos = [wait_for(client, id, 120) for id in ids]
        assert [(video["status"], video["model"]) for video in videos] == [("completed", name) for name in sent]
        records = [client.get(f"/v1/videos/{id}/content", params={"variant": "record"}).json() for id in ids]
        check_what_made_them(records, models)
        check_owl_stays_when_fox_dies(server, client)


def check_what_made_them(records, models):
    fox, ink, owl, again = records
    assert len({record["video_sha256"] for record in (fox, ink, owl)}) == 3
    assert again["video_sha256"] == fox["video_sha256"]  # the LoRA was taken off to the bit
    lora = f"{models / 'ink.safetensors'}:0.5"
    assert (fox["model"]["loras"], ink["model"]["loras"]) == ([], [lora])
    fused = prepare(Recipe(ModelSpec(str(models / "fox"), device="cpu", loras=(lora,))))
    assert ink["components_sha256"] == fused.digests != fox["components_sha256"]


def check_owl_stays_when_fox_dies(server: ServerProcess, client: httpx2.Client):
    """The workers are apart: with one gone the other model's videos are made."""
    registry = Registry(Database(f"sqlite:///{server.log.parent / 'videomaker.db'}"))
    (fox,) = registry.alive("fox")
    os.kill(fox.pid, signal.SIGKILL)
    id = submit(client, model="owl", **{**SETTINGS, "seed": "9"}).json()["id"]
    assert wait_for(client, id, 60)["status"] == "completed"
    id = submit(client, model="ink", **{**SETTINGS, "seed": "9"}).json()["id"]
    assert wait_for(client, id, 120)["status"] == "completed"  # by the worker that was started anew


def test_a_model_in_an_object_store_is_copied_once_and_by_servers_without_its_weights(models, tmp_path):
    url = f"file://{models}/owl"
    config = load_config(data=tmp_path, model=url)
    whole, facts = localised(config), localised(config, facts_only=True)
    assert whole.name == facts.name == "owl"
    names = {path.relative_to(whole.model): path for path in Path(whole.model).rglob("*") if path.is_file()}
    assert all((models / "owl" / name).read_bytes() == path.read_bytes() for name, path in names.items())
    assert len(names) == sum(path.is_file() for path in (models / "owl").rglob("*"))
    assert not list(Path(facts.model).rglob("*.safetensors"))
    assert State(facts).model == State(whole).model == State(config.model_copy(update={"model": f"{models}/owl"})).model
    names[Path("model_index.json")].write_text("touched")
    assert localised(config).model == whole.model and names[Path("model_index.json")].read_text() == "touched"
    several = localised(load_config(data=tmp_path, models=[{"model": url}, {"name": "b", "model": f"{models}/fox"}]))
    assert several.names == ["owl", "b"] and several.models[0].model == whole.model
    with pytest.raises(InputError, match=r"no model_index.json"):
        localised(load_config(data=tmp_path, model=f"file://{models}"))
    assert sorted(path.name for path in (tmp_path / "models").iterdir()) == sorted(
        Path(place).name for place in (whole.model, facts.model)
    )


def video_of(renderer: ModelRenderer, lora: str | None) -> np.ndarray:
    picture = media.fit_reference(media.load_reference(PICTURE), 32, 32, "stretch")
    request = {
        "prompt": "a creature", "negative_prompt": "", "model": "ink", "num_frames": 3, "height": 32, "width": 32,
        "fps": 8.0, "num_inference_steps": 2, "guidance_scale": 2.0, "fit": "stretch", "seed": 3, "consent": None,
        "references": [{"sha256": "0" * 64}], "lora": lora,
    }  # fmt: skip
    return renderer.render([RenderJob("x", request, (picture,))], 1, lambda: None)[0].frames


def test_a_lora_makes_what_generate_makes(models, tmp_path):
    config = load_config(write(tmp_path, table(models)), data=tmp_path)
    own = ModelRenderer(config.served[0], "cpu")
    fused = ModelRenderer(config.served[0].model_copy(update={"loras": ()}), "cpu")
    fused._prepared = prepare(
        Recipe(ModelSpec(str(models / "fox"), device="cpu", loras=(f"{models / 'ink.safetensors'}:0.5",)))
    )
    frames = {lora: video_of(own, lora) for lora in ("ink", None)}
    wanted = video_of(fused, None)
    np.testing.assert_array_equal(frames["ink"], wanted)
    assert not np.array_equal(frames[None], wanted)
    assert json.dumps(own._prepared.recipe.model.loras) == "[]"


def test_a_compiled_model_takes_its_loras_on_and_off(models, tmp_path, caplog):
    config = load_config(write(tmp_path, table(models)), data=tmp_path).served[0]
    eager, compiled = ModelRenderer(config, "cpu"), ModelRenderer(config.model_copy(update={"compile": True}), "cpu")
    with torch.compiler.set_stance("force_eager"):  # the graphs' own code, without the minute that compiling takes
        compiled.warm_up([Shape(num_frames=3, height=32, width=32)])
        for lora in ("ink", None, "ink"):
            found, wanted = (video_of(one, lora).astype(int) for one in (compiled, eager))
            assert np.abs(found - wanted).max() <= 1  # of 255: rounded to the other side
        assert np.abs(found - video_of(eager, None)).max() > 8  # a LoRA that is not put on would be seen
    assert "not a declared shape" not in caplog.text  # or the graphs had no part in it
