"""Checkpoints: published and own, full or partial, and everything that is not one."""

from __future__ import annotations

import pickle

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from tiny import tiny_pipeline, tiny_unet

from videomaker import InputError
from videomaker.attention import trainable_names
from videomaker.weights import checkpoint, load_into, read_state_dict, save_partial


@pytest.fixture(scope="module")
def trained() -> dict[str, torch.Tensor]:
    """A UNet's tensors, unlike those of the pipeline that loads them."""
    torch.manual_seed(1)
    return tiny_unet().state_dict()


def attn1_only(state):
    return {name: value for name, value in state.items() if ".attn1." in name and "motion_modules" not in name}


@pytest.mark.parametrize("suffix", [".bin", ".safetensors"])
@pytest.mark.parametrize("prefix", ["", "unet.", "module.unet."])
def test_full_checkpoint_in_either_format_with_prefixes(tmp_path, trained, suffix, prefix):
    path = tmp_path / f"model{suffix}"
    state = {prefix + name: value.contiguous() for name, value in trained.items()}
    save_file(state, path) if suffix == ".safetensors" else torch.save({"state_dict": state}, path)
    pipe = tiny_pipeline()
    report = pipe.load_videomaker_weights(path)
    assert report.complete and report.found == len(list(pipe.unet.parameters()))
    loaded = pipe.unet.state_dict()
    assert all(torch.equal(loaded[name], value) for name, value in trained.items())


def test_partial_checkpoint_is_counted_and_leaves_the_rest(tmp_path, trained):
    pipe = tiny_pipeline()
    before = {name: value.clone() for name, value in pipe.unet.state_dict().items()}
    partial = attn1_only(trained)
    save_partial(partial, tmp_path / "attn1.safetensors")
    report = pipe.load_videomaker_weights(tmp_path / "attn1.safetensors")
    assert report.groups["spatial attn1"] == (len(partial), len(partial))
    assert report.groups["motion modules"][0] == 0 and not report.complete
    for name, value in pipe.unet.state_dict().items():
        assert torch.equal(value, partial.get(name, before[name]))


def test_trainable_names_are_attn1_and_motion_modules():
    unet = tiny_unet()
    spatial = set(trainable_names(unet, update_motion=False))
    everything = set(trainable_names(unet, update_motion=True))
    assert spatial == {name for name, _ in unet.named_parameters() if name in attn1_only({name: None})}
    assert everything - spatial == {name for name, _ in unet.named_parameters() if "motion_modules" in name}


def test_parameters_alone_are_a_complete_checkpoint(trained):
    """As training exports them; the state dict holds constant buffers as well."""
    unet = tiny_unet()
    parameters = {name: trained[name] for name in trainable_names(unet)}
    assert len(parameters) < sum(".attn1." in name or "motion_modules" in name for name in trained)
    assert load_into(unet, parameters).complete


def test_saving_casts_floating_tensors_only(tmp_path):
    path = tmp_path / "x.safetensors"
    save_partial({"a": torch.ones(2), "n": torch.arange(2)}, path, dtype=torch.bfloat16, metadata={"step": "7"})
    state = read_state_dict(path)
    assert state["a"].dtype == torch.bfloat16 and state["n"].dtype == torch.int64
    assert [p.name for p in tmp_path.iterdir()] == ["x.safetensors"]
    ordinary = tmp_path / "ordinary"
    ordinary.touch()
    assert path.stat().st_mode == ordinary.stat().st_mode  # safetensors alone would let nobody else read it


class _Payload:
    def __reduce__(self):
        return (print, ("code ran",))


def test_pickled_code_never_runs(tmp_path, capsys):
    path = tmp_path / "evil.bin"
    path.write_bytes(pickle.dumps({"a": _Payload()}))
    with pytest.raises(InputError, match="cannot be read"):
        read_state_dict(path)
    torch.save({"a": _Payload()}, path)
    with pytest.raises(InputError, match="cannot be read"):
        read_state_dict(path)
    assert "code ran" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: {"another.architecture.weight": torch.ones(1)}, "another architecture"),
        (lambda state: {name: value[..., :-1] for name, value in attn1_only(state).items()}, "another shape"),
        (lambda state: {"conv_in.weight": state["conv_in.weight"]}, "none of the"),
        (lambda state: {}, "none of the"),
    ],
)
def test_checkpoints_that_do_not_fit_change_nothing(trained, change, message):
    unet = tiny_unet()
    before = {name: value.clone() for name, value in unet.state_dict().items()}
    with pytest.raises(InputError, match=message):
        load_into(unet, change(trained))
    assert all(torch.equal(value, before[name]) for name, value in unet.state_dict().items())


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"PK\x03\x04broken"])
@pytest.mark.parametrize("suffix", [".bin", ".safetensors"])
def test_files_that_are_no_checkpoints(tmp_path, content, suffix):
    path = tmp_path / f"file{suffix}"
    path.write_bytes(content)
    with pytest.raises(InputError, match="cannot be read"):
        read_state_dict(path)


def test_missing_file_and_non_tensor_values(tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        read_state_dict(tmp_path / "none.bin")
    torch.save({"a": torch.ones(1), "epoch": 3}, tmp_path / "run.bin")
    with pytest.raises(InputError, match="'epoch', which is not a tensor"):
        read_state_dict(tmp_path / "run.bin")
    torch.save([torch.ones(1)], tmp_path / "list.bin")
    with pytest.raises(InputError, match="holds a list"):
        read_state_dict(tmp_path / "list.bin")


def test_a_disk_that_is_full_is_an_error_of_the_system(tmp_path, monkeypatch):
    def fails(*arguments, **options):
        raise SafetensorError("Error while serializing: I/O error: No space left on device")

    monkeypatch.setattr(checkpoint, "save_file", fails)
    with pytest.raises(OSError, match=r"cannot be written: .* No space left"):
        save_partial({"a": torch.ones(2)}, tmp_path / "a.safetensors")
    assert not list(tmp_path.iterdir())


def test_one_unknown_tensor_is_a_warning_with_its_name(caplog):
    unet = tiny_pipeline().unet
    state = {**tiny_pipeline(seed=3).unet.state_dict(), "some.counter": torch.ones(1)}
    report = load_into(unet, state)
    assert report.complete
    assert "some.counter" in caplog.text
    strangers = {f"some.{number}": torch.ones(1) for number in range(50)}
    with pytest.raises(InputError, match="51 tensors that this UNet has not"):
        load_into(unet, state | strangers)
