"""Networks that measure, tiny and random in their real formats, against independent computations."""

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from tiny_metrics import blocks, write_networks

from videomaker.errors import InputError
from videomaker.evaluation import metrics
from videomaker.evaluation.faces import Face, InsightFace, largest_face
from videomaker.evaluation.flow import UPDATES, Dis, Raft
from videomaker.evaluation.kit import open_networks
from videomaker.evaluation.networks import Clip, Dino, MissingNetwork
from videomaker.evaluation.protocol import PROTOCOLS


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    return write_networks(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def pictures() -> list[Image.Image]:
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 256, (40 + 8 * i, 64, 3), np.uint8)) for i in range(5)]


def test_clip_by_hand(models, pictures):
    """Bicubic to the shorter side, centre crop, CLIP's mean and deviation; then the whole model's own similarity."""
    from transformers import CLIPModel

    clip = Clip(models / "clip", "cpu")
    model = CLIPModel.from_pretrained(models / "clip")
    mean, std = torch.tensor([0.48145466, 0.4578275, 0.40821073]), torch.tensor([0.26862954, 0.26130258, 0.27577711])
    text = "a thing over a blue sea"
    tokens = clip.tokenizer(text, return_tensors="pt")
    assert tokens.input_ids[0, 0] == 512 and tokens.input_ids[0, -1] == 513
    for picture, embedding in zip(pictures, clip.pictures(pictures), strict=True):
        scale = 32 / min(picture.size)
        width, height = (int(side * scale) for side in picture.size)
        small = picture.resize((width, height), Image.Resampling.BICUBIC)
        left, top = (width - 32) // 2, (height - 32) // 2
        small = small.crop((left, top, left + 32, top + 32))
        pixels = ((torch.tensor(np.asarray(small)) / 255 - mean) / std).permute(2, 0, 1)[None].float()
        with torch.no_grad():
            expected = model(pixel_values=pixels, **tokens).logits_per_image / model.logit_scale.exp()
        found = metrics.cosines(embedding[None], clip.text(text))
        np.testing.assert_allclose(found, expected[0].numpy(), atol=2e-6)


def test_dino_by_hand(models, pictures):
    """Stretched to the square, bilinear; the class token of the last hidden state."""
    from transformers import ViTModel

    model = ViTModel.from_pretrained(models / "dino", add_pooling_layer=False)
    for picture, embedding in zip(pictures, Dino(models / "dino", "cpu").pictures(pictures), strict=True):
        pixels = torch.tensor(np.asarray(picture.resize((32, 32), Image.Resampling.BILINEAR))) / 127.5 - 1
        with torch.no_grad():
            expected = model(pixel_values=pixels.permute(2, 0, 1)[None].float()).last_hidden_state[0, 0]
        np.testing.assert_allclose(embedding, expected.numpy(), atol=2e-5)


@pytest.mark.parametrize("network", [Clip, Dino])
def test_embeddings_do_not_depend_on_the_batch(models, pictures, network):
    found = network(models / network.__name__.lower(), "cpu")
    together = found.pictures(pictures * 15)  # more than one batch
    alone = np.concatenate([found.pictures([picture]) for picture in pictures])
    np.testing.assert_allclose(together, np.tile(alone, (15, 1)), atol=2e-6)


@pytest.mark.parametrize(("network", "kind"), [(Clip, "CLIPModel"), (Dino, "ViTModel")])
def test_files_in_half_precision_are_computed_in_single(models, pictures, tmp_path, network, kind):
    """transformers 5 would compute in the file's: what is left is the rounding of the weights, 2⁻¹¹ of each."""
    whole, folder = network(models / network.__name__.lower(), "cpu"), tmp_path / "half"
    shutil.copytree(models / network.__name__.lower(), folder)
    options = {"add_pooling_layer": False} if network is Dino else {}
    getattr(transformers, kind).from_pretrained(folder, **options).half().save_pretrained(folder)
    half = network(folder, "cpu")
    assert half.model.dtype == torch.float32
    np.testing.assert_allclose(half.pictures(pictures), whole.pictures(pictures), atol=1e-2)


def test_long_texts_are_cut_where_clip_stops(models):
    assert np.isfinite(Clip(models / "clip", "cpu").text("word " * 100)).all()


class ShiftedBy:
    """Shaped as torchvision's RAFT: two pictures in, a list of flows out, the last the best."""

    def __init__(self, shift):
        self.shift, self.seen = shift, []

    def __call__(self, first, second, num_flow_updates):
        self.seen.append((first, second, num_flow_updates))
        worse = torch.full((1, 2, *first.shape[-2:]), 99.0)
        flow = torch.zeros_like(worse)
        flow[:, 0], flow[:, 1] = self.shift
        return [worse, flow]


def test_raft_is_asked_as_the_paper_asks_it():
    model = ShiftedBy((3.0, 4.0))
    frames = np.random.default_rng(0).integers(0, 256, (3, 130, 141, 3), np.uint8)
    lengths = list(Raft(model).magnitudes(frames))
    assert [length.shape for length in lengths] == [(130, 141)] * 2
    assert all((length == 5).all() for length in lengths)  # of the last flow
    first, second, updates = model.seen[1]
    assert updates == UPDATES == 20
    assert first.shape == second.shape == (1, 3, 136, 144)  # multiples of 8
    np.testing.assert_allclose(first[0, :, 3:133, 1:142].movedim(0, -1), frames[1] / 127.5 - 1, atol=1e-6)
    with pytest.raises(MissingNetwork, match="at least 128 pixels"):
        list(Raft(model).magnitudes(frames[:, :100]))


@pytest.mark.parametrize(("pixels", "moves"), [(0, False), (6, False), (11, False), (13, True), (30, True)])
def test_dis_decides_known_shifts(pixels, moves):
    """A photo-like picture (noise of all scales) at 512×512, whose threshold is 12 pixels."""
    pytest.importorskip("cv2")
    picture = photo_like(512 + 64)
    frames = np.stack([picture[:512, shift : shift + 512] for shift in (32, 32 + pixels)])
    (lengths,) = Dis().magnitudes(frames)
    speed = metrics.top_flow(lengths)
    assert (speed > metrics.flow_threshold(512, 512)) is moves
    assert abs(np.median(lengths) - pixels) < 0.5
    assert metrics.is_dynamic(np.full(15, speed), height=512, width=512) is moves


def photo_like(side: int) -> np.ndarray:
    """Smooth noise of several scales, `[side, side, 3]` uint8."""
    rng, total = np.random.default_rng(3), np.zeros((side, side, 3))
    for cells, weight in ((6, 90), (24, 60), (72, 40), (144, 25)):
        noise = Image.fromarray(rng.integers(0, 256, (cells, cells, 3), np.uint8))
        total += weight * (np.asarray(noise.resize((side, side), Image.Resampling.BICUBIC), float) / 127.5 - 1)
    return np.clip(128 + total / 1.5, 0, 255).astype(np.uint8)


def test_what_is_missing_is_named_with_what_to_put_where(models, tmp_path):
    networks = open_networks(models, PROTOCOLS["paper"])
    assert sorted(networks.present) == ["clip", "dino"]
    assert "has no face/: put insightface's buffalo_l there" in networks.missing["face"]
    assert "has no raft/" in networks.missing["flow"]
    assert "give --models FOLDER with clip/" in open_networks(None, PROTOCOLS["paper"]).missing["clip"]
    (tmp_path / "clip").mkdir()
    with pytest.raises(InputError, match="cannot be loaded as CLIPImageProcessorPil"):
        open_networks(tmp_path, PROTOCOLS["paper"])
    with pytest.raises(InputError, match="is not a folder"):
        open_networks(tmp_path / "none", PROTOCOLS["paper"])
    (tmp_path / "clip").rmdir()
    (tmp_path / "raft").mkdir()
    if importlib.util.find_spec("torchvision") is None:
        assert "torchvision cannot be imported" in open_networks(tmp_path, PROTOCOLS["paper"]).missing["flow"]


def test_another_models_folder_is_refused(models, tmp_path):
    """transformers would draw what is missing at random, and say so in a log."""
    (tmp_path / "dino").symlink_to(models / "clip")
    with pytest.raises(InputError, match="cannot be loaded as ViTModel"):
        open_networks(tmp_path, PROTOCOLS["paper"])


def test_the_largest_face_counts():
    small, large = Face(10, np.ones(2)), Face(90, np.zeros(2))
    assert largest_face([small, large]) is large and largest_face([]) is None


@pytest.mark.parametrize(("device", "gpu"), [("cuda:1", 1), ("cuda", 0), ("cpu", None)])
def test_faces_are_looked_for_on_the_device_that_is_asked_for(tmp_path, monkeypatch, device, gpu):
    """Of onnxruntime's providers the CUDA one takes the first GPU, unless it is told which."""
    asked = []

    def get_model(file, providers):
        asked.append(providers)
        return SimpleNamespace(taskname=Path(file).stem, prepare=lambda **options: None)

    for name, content in {"app.common": {"Face": dict}, "model_zoo": {"get_model": get_model}}.items():
        monkeypatch.setitem(sys.modules, f"insightface.{name}", SimpleNamespace(**content))
    for name in ("insightface", "insightface.app"):
        monkeypatch.setitem(sys.modules, name, SimpleNamespace(__path__=[]))
    for name in ("detection", "recognition"):
        (tmp_path / f"{name}.onnx").touch()
    InsightFace(tmp_path, device, "bgr")
    cuda = [] if gpu is None else [("CUDAExecutionProvider", {"device_id": gpu})]
    assert asked == [[*cuda, "CPUExecutionProvider"]] * 2


@pytest.fixture(scope="session")
def portraits(tmp_path_factory) -> Path:
    """Real portraits, from the source package of face-recognition on PyPI."""
    pytest.importorskip("dlib", reason="the optional dlib-bin is not installed")
    folder = tmp_path_factory.mktemp("portraits")
    command = ["download", "-q", "--no-deps", "--no-build-isolation", "--no-binary", ":all:", "face-recognition==1.3.0"]
    got = subprocess.run([sys.executable, "-m", "pip", *command, "-d", str(folder)], capture_output=True, timeout=120)
    files = list(folder.glob("*.tar.gz"))
    if got.returncode or not files:
        pytest.skip("the portraits of face-recognition cannot be fetched")
    import tarfile

    with tarfile.open(files[0]) as archive:
        archive.extractall(folder, filter="data")
    return next(folder.glob("*/tests/test_images"))


def test_dlib_tells_persons_apart(portraits):
    from videomaker.evaluation.faces import Dlib

    network = Dlib()

    def embedding(name):
        face = largest_face(network.faces(np.asarray(Image.open(portraits / name).convert("RGB"))))
        return face.embedding

    one, again, other = map(embedding, ("obama.jpg", "obama2.jpg", "biden.jpg"))
    assert np.linalg.norm(one - again) < 0.5 < 0.6 < np.linalg.norm(one - other)
    assert metrics.cosines(again[None], one)[0] > metrics.cosines(other[None], one)[0]
    assert network.faces(blocks(0, side=64)) == []
