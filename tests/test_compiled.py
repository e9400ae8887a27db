"""The static step, its graphs and their artifacts, against the eager pipeline."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler
from PIL import Image
from tiny import tiny_pipeline, tiny_scheduler, tiny_vae
from torch._dynamo.utils import counters
from typer.testing import CliRunner

from videomaker import InputError, VideoMakerPipeline
from videomaker.attention import install_pisa
from videomaker.cli import app
from videomaker.compiled import Bucket, StaticGraph, artifacts
from videomaker.compiled.processors import prepare_unet, project_text
from videomaker.compiled.sampler import Approximations, ddim_weights
from videomaker.compiled.step import denoising_step
from videomaker.denoising import guided_noise
from videomaker.jobs import prepare, request
from videomaker.pipeline.memory import PeakMemory, decoder_bytes_per_frame, module_bytes

pytestmark = pytest.mark.timeout(1800)  # the C++ compiler takes its time on a busy machine

FRAMES, SIZE, STEPS = 3, 32, 3
# The promise of `compile`: relative error against eager in float32, where a sum in another order errs by about 1e-6.
TOLERANCE = 1e-4


def picture(seed: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (SIZE, SIZE, 3), dtype=np.uint8))


def run(pipe, seeds=(0,), **changes):
    """Videos with a prompt, a reference, a guidance scale and a generator of their own."""
    settings = {
        "prompt": [f"a fox {seed}" for seed in seeds],
        "reference_image": [picture(seed) for seed in seeds],
        "guidance_scale": [2.0 + seed for seed in seeds],
        "generator": [torch.Generator().manual_seed(seed) for seed in seeds],
        "num_frames": FRAMES,
        "height": SIZE,
        "width": SIZE,
        "num_inference_steps": STEPS,
        "output_type": "pt",
    }
    return pipe(**{**settings, **changes}).frames


def relative_error(ours: torch.Tensor, exact: torch.Tensor) -> float:
    return ((ours - exact).norm() / exact.norm()).item()


def one_level_pipeline():
    """The smallest pipeline that has every kind of block: less to compile."""
    return tiny_pipeline(
        down_block_types=("CrossAttnDownBlockMotion",),
        up_block_types=("CrossAttnUpBlockMotion",),
        block_out_channels=(16,),
    )


@pytest.fixture(scope="module")
def compiled():
    pipe = one_level_pipeline()
    pipe.compile([Bucket(num_frames=FRAMES, height=SIZE, width=SIZE, batch=2)])
    return pipe


@pytest.fixture
def eager():
    return one_level_pipeline()


def test_a_long_video_takes_the_graph_of_its_windows(compiled, eager):
    long = {"num_frames": 7, "window_frames": FRAMES, "output_type": "latent"}
    before = counters["stats"]["unique_graphs"]
    videos = run(compiled, seeds=(1, 2), **long)
    assert counters["stats"]["unique_graphs"] == before
    assert relative_error(videos, run(eager, seeds=(1, 2), **long)) < TOLERANCE


def test_a_compiled_batch_is_what_each_request_gives_alone(compiled, eager):
    videos = run(compiled, seeds=(1, 2))
    for video, seed in zip(videos, (1, 2), strict=True):
        assert relative_error(video, run(eager, seeds=(seed,))[0]) < TOLERANCE


def test_ten_different_requests_compile_nothing(compiled):
    graphs = counters["stats"]["unique_graphs"]
    with torch.compiler.set_stance("fail_on_recompile"):
        for i in range(10):
            run(compiled, seeds=(i, 9 - i), num_inference_steps=1 + i % 3, negative_prompt="dull" * i)
    assert counters["stats"]["unique_graphs"] == graphs > 0


def test_another_scheduler_runs_through_the_same_graph(compiled, eager, monkeypatch):
    for pipe in (compiled, eager):
        monkeypatch.setattr(pipe, "scheduler", DPMSolverMultistepScheduler.from_config(pipe.scheduler.config))
    with torch.compiler.set_stance("fail_on_recompile"):
        ours = run(compiled, seeds=(1, 2))
    assert relative_error(ours, run(eager, seeds=(1, 2))) < TOLERANCE


def test_weights_changed_after_compiling_are_used(compiled, eager):
    name = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_k.weight"
    before = compiled.unet.get_parameter(name).clone()
    with torch.no_grad():
        for pipe in (compiled, eager):
            pipe.unet.get_parameter(name).mul_(-3)
    try:
        assert relative_error(run(compiled, seeds=(1, 2)), run(eager, seeds=(1, 2))) < TOLERANCE
    finally:
        with torch.no_grad():
            compiled.unet.get_parameter(name).copy_(before)


def test_an_undeclared_shape_runs_eagerly_and_says_what_it_costs(compiled, eager, caplog):
    with torch.compiler.set_stance("fail_on_recompile"):
        ours = run(compiled, num_frames=2)
    assert relative_error(ours, run(eager, num_frames=2)) < TOLERANCE
    assert "1x4x2x16x16, not a declared shape" in caplog.text and "compiling took up to" in caplog.text


def test_a_moved_pipeline_is_refused(compiled, monkeypatch):
    monkeypatch.setattr(compiled.unet.conv_in, "weight", torch.nn.Parameter(compiled.unet.conv_in.weight.clone()))
    with pytest.raises(InputError, match="moved or cast"):
        run(compiled)


def test_artifacts_fit_or_are_refused_with_the_reason(compiled, tmp_path, monkeypatch):
    folder = artifacts.save(tmp_path / "saved", compiled)
    assert artifacts.load(folder, compiled) == "loaded"
    assert "mode" in artifacts.load(folder, compiled, mode="max-autotune-no-cudagraphs")
    monkeypatch.setattr(artifacts, "versions", lambda: {"torch": "0.0"})
    assert "made for torch" in artifacts.load(folder, compiled)
    monkeypatch.undo()
    code = folder / artifacts.CODE_FILE
    code.write_bytes(code.read_bytes()[:-1])
    assert "damaged" in artifacts.load(folder, compiled)
    folder.chmod(0o777)
    assert "everybody" in artifacts.load(folder, compiled)
    assert "there is no such folder" in artifacts.load(tmp_path / "absent", compiled)


@pytest.mark.parametrize("height", [8, 9], ids=["even", "odd"])
@pytest.mark.parametrize("with_reference", [True, False], ids=["text-for-all", "text-for-frames"])
def test_static_step_is_the_guided_prediction_and_the_schedulers_update(height, with_reference):
    pipe = tiny_pipeline()
    unet, scheduler = pipe.unet, pipe.scheduler
    install_pisa(unet, reference_cross_attention=with_reference)
    scheduler.set_timesteps(2)
    latents, reference = torch.randn(2, 4, FRAMES, height, 8), torch.randn(2, 4, 2, height, 8)
    text, guidance = torch.randn(4, 7, 16), torch.tensor([3.0, 8.0]).view(2, 1, 1, 1, 1)
    weights = ddim_weights(scheduler, scheduler.timesteps)
    with torch.no_grad():
        for i, t in enumerate(scheduler.timesteps):
            noise = guided_noise(unet, latents, reference, t, text, guidance)
            expected = scheduler.step(noise, t, latents).prev_sample
            prepare_unet(unet)
            states = project_text(unet, text)
            ours, _ = denoising_step(unet, latents, reference, t.reshape(1), weights[i], guidance, states)
            assert relative_error(ours, expected) < 1e-5


@pytest.mark.parametrize("prediction_type", ["epsilon", "sample", "v_prediction"])
def test_ddim_is_linear_in_latents_and_prediction(prediction_type):
    scheduler = DDIMScheduler.from_config(tiny_scheduler().config, prediction_type=prediction_type)
    scheduler.set_timesteps(7)
    latents, prediction = torch.randn(2, 5)
    for t, (of_latents, of_prediction) in zip(
        scheduler.timesteps, ddim_weights(scheduler, scheduler.timesteps), strict=True
    ):
        expected = scheduler.step(prediction, t, latents).prev_sample
        torch.testing.assert_close(of_latents * latents + of_prediction * prediction, expected, rtol=1e-4, atol=1e-5)


def test_reused_inner_blocks_run_at_every_other_step_only(eager):
    exact = run(eager, num_inference_steps=8)
    calls = []
    eager.unet.mid_block.register_forward_hook(lambda *_: calls.append(1))
    eager.approximations = Approximations(reuse_every=2)
    ours = run(eager, num_inference_steps=8)
    assert len(calls) == 4
    assert 0 < relative_error(ours, exact) < 0.1


def test_guidance_that_ends_early_halves_the_rest(eager):
    exact = run(eager)
    rows = []
    eager.unet.conv_in.register_forward_pre_hook(lambda _, inputs: rows.append(len(inputs[0])))
    eager.approximations = Approximations(guidance_until=0.3)
    ours = run(eager)
    assert rows == [2 * (FRAMES + 1), FRAMES + 1, FRAMES + 1]  # the first of three steps is guided
    assert 0 < relative_error(ours, exact) < 0.5
    with pytest.raises(InputError, match="fraction"):
        Approximations(guidance_until=1.5)


def test_prompts_and_references_that_come_again_are_encoded_once(eager):
    texts, pictures = [], []
    eager.text_encoder.register_forward_hook(lambda *_: texts.append(1))
    eager.vae.encoder.register_forward_pre_hook(lambda _, inputs: pictures.append(len(inputs[0])))
    first = run(eager, seeds=(1, 2), negative_prompt="dull")
    assert len(texts) == 3 and pictures == [2]
    again = run(eager, seeds=(1, 2), negative_prompt="dull")
    assert pictures == [2] and torch.equal(again, first)
    other_seed = run(eager, seeds=(1, 2), generator=[torch.Generator().manual_seed(seed) for seed in (5, 6)])
    assert pictures == [2] and relative_error(other_seed, first) > 1e-3
    eager.vae.load_state_dict({name: 2 * value for name, value in eager.vae.state_dict().items()})
    assert relative_error(run(eager, seeds=(1, 2), negative_prompt="dull"), first) > 1e-3
    assert pictures == [2, 2]  # other weights, other latents


def test_offloaded_parts_are_not_compiled(eager):
    eager.vae._hf_hook = object()
    with pytest.raises(InputError, match="vae is offloaded"):
        eager.compile()


def test_generate_declares_the_shapes_of_its_batches(tmp_path):
    asked = []
    pipe = SimpleNamespace(compile=lambda buckets, saved: asked.append((buckets, saved)))
    settings = request.Settings(frames=4, height=32, width=48, guidance=1.0)
    recipe = request.Recipe(request.ModelSpec(compile=True), settings)
    job = request.Job((tmp_path / "a.png", tmp_path / "b.png"), "a fox", 0, tmp_path / "fox.mp4")
    prepare.compile_for(prepare.Prepared(pipe, recipe, {}), [[job, job], [job]], tmp_path)
    shapes = [Bucket(4, 32, 48, batch, num_references=2, guidance=False) for batch in (2, 1)]
    assert asked == [(shapes, tmp_path)]


def test_warmup_saves_what_it_compiled_for_each_batch(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(VideoMakerPipeline, "compile", lambda self, buckets: asked.extend(buckets))
    monkeypatch.setattr(artifacts, "save", lambda folder, pipe: folder)
    arguments = ["--save", tmp_path / "saved", "--frames", 4, "--width", 32, "--height", 32]
    arguments += ["--batch-size", 1, "--batch-size", 3, "--device", "cpu"]
    result = CliRunner().invoke(app, ["warmup", *map(str, arguments)])
    assert result.exit_code == 0, result.output
    assert asked == [Bucket(4, 32, 32, batch=1), Bucket(4, 32, 32, batch=3)]
    assert str(tmp_path / "saved") in result.output


def test_full_size_with_offload_fits_twelve_gigabytes(monkeypatch):
    """Stable Diffusion 1.5, 16 frames of 512×512, half precision, one part at a time on the card; counted on "meta"."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "bench"))
    from sd15 import sd15_pipeline

    def empty(*shape):
        return torch.empty(*shape, device="meta", dtype=torch.float16)

    def peak(module, call):
        with torch.no_grad(), PeakMemory() as memory:
            call()
        return module_bytes(module) + memory.peak

    pipe = sd15_pipeline(device="meta", dtype=torch.float16)
    frame = empty(1, 4, 64, 64)
    step = peak(
        pipe.unet,
        lambda: guided_noise(
            pipe.unet,
            frame.unsqueeze(2).expand(-1, -1, 16, -1, -1),
            frame.unsqueeze(2),
            500,
            empty(2, 77, 768),
            empty(1),
        ),
    )
    decoding = peak(pipe.vae, lambda: pipe.vae.decode(frame))
    encoding = peak(pipe.vae, lambda: pipe.vae.encode(empty(1, 3, 512, 512)))
    context = 1e9  # of the driver, and the libraries' workspaces
    assert max(step, decoding, encoding) + context < 12e9
    assert decoding < module_bytes(pipe.vae) + decoder_bytes_per_frame(pipe.vae, 64, 64)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_captured_graphs_give_the_numbers_of_eager():
    eager, ours = one_level_pipeline().to("cuda"), one_level_pipeline().to("cuda")
    ours.compile([Bucket(num_frames=FRAMES, height=SIZE, width=SIZE, batch=2)])
    for seeds in ((1, 2), (3, 4)):
        assert relative_error(run(ours, seeds=seeds), run(eager, seeds=seeds)) < 10 * TOLERANCE  # TF32 convolutions


def test_artifacts_spare_the_compiler(tmp_path, monkeypatch):
    """A graph that another process compiled comes from its artifacts, not from inductor, nor from the C++ compiler."""
    from torch._inductor.cpp_builder import CppBuilder
    from torch._inductor.utils import fresh_cache

    layer = torch.nn.Sequential(tiny_vae().post_quant_conv, torch.nn.SiLU(), torch.nn.Softmax(dim=1))

    def compilations_and_hits():
        count = lambda: (counters["inductor"]["fxgraph_cache_miss"], counters["aot_autograd"]["autograd_cache_hit"])
        compilations, hits = count()
        torch._dynamo.reset()  # or the graph in memory would serve, as it should; hence the last of the tests
        graph = StaticGraph("a convolution", layer, mode="default")
        graph.open = True
        graph(torch.ones(1, 4, 16, 16))
        return count()[0] - compilations, count()[1] - hits

    pipe = one_level_pipeline()
    with torch.no_grad():
        with fresh_cache():
            assert compilations_and_hits() == (1, 0)
            folder = artifacts.save(tmp_path / "saved", pipe)
        with fresh_cache():
            assert artifacts.load(folder, pipe) == "loaded"
            monkeypatch.setattr(CppBuilder, "build", lambda self: pytest.fail("the C++ compiler ran"))
            assert compilations_and_hits() == (0, 1)
