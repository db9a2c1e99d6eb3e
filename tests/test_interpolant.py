"""
The methods that differ in the path to the clear image, on a problem with a known posterior.

The pixels are independent. A clear pixel is x ~ N(0, 1), a hazy one y = x + 0.8·n with n ~ N(0, 1). The posterior is
then N(y / 1.64, 0.64 / 1.64). The best prediction at every time is linear in the inputs of the network.
"""

import numpy as np
import pytest
import torch
from conftest import tiny_unet
from diffusers import UNet2DModel

from haze_pipeline import FlowMatchODEScheduler, HazeMatchingPipeline
from haze_pipeline.presets import Preset, with_preset
from haze_pipeline.sampling.interpolant import Interpolant


BLUR = 0.8  # standard deviation of hazy − clear
SLOPE, VARIANCE = 1 / (1 + BLUR**2), BLUR**2 / (1 + BLUR**2)  # of the posterior
STEPS = 100  # of Euler
HAZE_MATCHING = Interpolant()
SIFM = Interpolant("hazy", 0.5)
SIFM_WITHOUT_NOISE = Interpolant("hazy", 0.0)
INDI = Interpolant("hazy", 0.01, "clear", guided=False)
COLD = Interpolant("hazy", 0.0, "clear", guided=False)


class LinearNetwork(UNet2DModel):
    """For every time of a grid, the linear combination of the inputs that fits the target of an interpolant best."""

    def fit(self, interpolant, num_examples=200_000):
        generator = torch.Generator().manual_seed(0)
        clear, noise, blur = torch.randn(3, num_examples, 1, 1, 1, generator=generator).double()
        hazy = clear + BLUR * blur
        start = interpolant.start(noise, hazy)
        target = interpolant.target(start, clear)
        self.coefficients = []
        for step in range(STEPS):
            t = step / STEPS
            inputs = interpolant.network_input((1 - t) * start + t * clear, hazy)[..., 0, 0]
            # Inputs may be equal, as those of a start without noise: the shortest solution is as good as any.
            self.coefficients.append(torch.linalg.pinv(inputs.T @ inputs, rcond=1e-9) @ (inputs.T @ target[:, 0, 0]))
        return self

    def forward(self, sample, timestep, return_dict=True):
        coefficients = self.coefficients[round(float(timestep) * STEPS)].to(sample)
        return (torch.einsum("bchw,cd->bdhw", sample, coefficients),)


def make_pipe(interpolant, network, **config):
    return HazeMatchingPipeline(
        network, FlowMatchODEScheduler(), "fixed", 0.0, 1.0, source=interpolant.source,
        source_noise=interpolant.source_noise, prediction_type=interpolant.prediction_type,
        guided=interpolant.guided, **config,
    )  # fmt: skip


def gaussian_pipe(interpolant):
    config = {**tiny_unet().config, "in_channels": 2 if interpolant.guided else 1}
    return make_pipe(interpolant, LinearNetwork.from_config(config).fit(interpolant))


@pytest.fixture(scope="module")
def hazy():
    rng = np.random.default_rng(1)
    return (rng.normal(size=(64, 64)) + BLUR * rng.normal(size=(64, 64))).astype(np.float32)


def slope_and_variance(hazy, samples):
    """Least-squares slope of the samples against the hazy image, and the variance of the samples around that line."""
    slope = (samples * hazy).mean() / np.square(hazy).mean()
    return slope, np.square(samples - slope * hazy).mean()


@pytest.mark.parametrize("interpolant", [HAZE_MATCHING, SIFM], ids=["HazeMatching", "SIFM"])
def test_guided_flows_with_noise_sample_the_posterior(hazy, interpolant):
    pipe = gaussian_pipe(interpolant)
    out = pipe(hazy, STEPS, ensemble_size=16, generator=torch.Generator().manual_seed(0), output_samples=True)
    slope, variance = slope_and_variance(hazy, out.samples)
    assert out.hot_pixels == 0
    assert slope == pytest.approx(SLOPE, abs=0.01) and variance == pytest.approx(VARIANCE, rel=0.05)
    mean = pipe(hazy, 1, ensemble_size=2, generator=torch.Generator().manual_seed(0)).prediction
    slope, variance = slope_and_variance(hazy, mean)
    assert slope == pytest.approx(SLOPE, abs=0.01) and variance < 1e-4


def test_a_guided_flow_without_noise_gives_the_posterior_mean_alone(hazy):
    pipe = gaussian_pipe(SIFM_WITHOUT_NOISE)
    samples = pipe(hazy, STEPS, ensemble_size=4, output_samples=True).samples
    slope, variance = slope_and_variance(hazy, samples)
    assert slope == pytest.approx(SLOPE, abs=0.01) and variance < 1e-8
    with pytest.raises(ValueError, match="needs noise in the start of the path"):
        pipe(hazy, STEPS, ensemble_size=4, output_uncertainty=True)


def test_noise_may_differ_between_training_and_sampling(hazy):
    pipe = gaussian_pipe(SIFM)
    spreads = [
        pipe(hazy, STEPS, ensemble_size=8, source_noise=noise, output_uncertainty=True).uncertainty.mean()
        for noise in (0.25, 0.5)
    ]
    assert spreads[0] == pytest.approx(spreads[1] / 2, rel=0.1)
    samples = pipe(hazy, STEPS, ensemble_size=2, source_noise=0, output_samples=True).samples
    np.testing.assert_array_equal(samples[0], samples[1])


def test_indi_gives_the_mean_in_one_step_and_the_contrast_of_clear_images_in_many(hazy):
    """Many steps map the distribution of hazy images to that of clear ones, so that the error grows."""
    pipe = gaussian_pipe(INDI)
    slope, variance = slope_and_variance(hazy, pipe(hazy, 1, source_noise=0).prediction)
    assert slope == pytest.approx(SLOPE, abs=0.01) and variance < 1e-8
    slope, variance = slope_and_variance(hazy, pipe(hazy, STEPS, source_noise=0).prediction)
    assert slope == pytest.approx(1 / np.sqrt(1 + BLUR**2), abs=0.01) and variance < 1e-8
    samples = pipe(hazy, STEPS, ensemble_size=8, output_samples=True).samples
    assert samples.std(axis=0, ddof=1).mean() < 0.02 * np.sqrt(VARIANCE)


def test_one_step_of_indi_is_regression(hazy):
    torch.manual_seed(0)
    unet = UNet2DModel.from_config({**tiny_unet().config, "in_channels": 1}).eval()
    pipe = make_pipe(COLD, unet)
    inputs = torch.from_numpy(hazy)[None, None]
    with torch.no_grad():
        regressed = unet(inputs, 0).sample
    np.testing.assert_allclose(pipe(hazy, 1).prediction, regressed[0, 0].numpy(), atol=1e-5)
    # The same holds for the loss: at t = 0, the state is the hazy image, and the target is the clear one.
    clear = torch.randn(1, 1, 64, 64)
    start = COLD.start(torch.randn(1, 1, 64, 64), inputs)
    assert torch.equal(COLD.network_input(start, inputs), inputs) and torch.equal(COLD.target(start, clear), clear)


def step(solver, states, estimates, sigmas):
    """Follow a path through given estimates of the clear image. Returns the states after each step."""
    scheduler = FlowMatchODEScheduler(solver=solver)
    scheduler.set_timesteps(sigmas=sigmas)
    state, followed = states, []
    for timestep, estimate in zip(scheduler.timesteps, estimates, strict=True):
        velocity = COLD.velocity(estimate, state, 1 - timestep / 1000)
        state = scheduler.step(-velocity, timestep, state).prev_sample
        followed.append(state)
    return followed


def test_cold_diffusion_on_a_straight_path_is_a_step_of_indi():
    torch.manual_seed(0)
    hazy, clear = torch.randn(2, 100).double()
    sigmas = [1.0, 0.7, 0.3]
    followed = {solver: step(solver, hazy, [clear] * 3, sigmas) for solver in ("euler", "cold", "cold_naive")}
    for later, expected in enumerate([0.7, 0.3, 0.0]):  # all three stay on the path to a constant estimate
        for states in followed.values():
            torch.testing.assert_close(states[later], expected * hazy + (1 - expected) * clear, atol=1e-6, rtol=0)

    # For changing estimates x̂, InDI's step (s'/s)·x + (1 − s'/s)·x̂ is x − D(x̂, s) + D(x̂, s'), if D degrades towards
    # the start that the state implies: y = (x − (1 − s)·x̂) / s. Cold diffusion keeps the first y.
    estimates = torch.randn(3, 100).double()
    euler, cold, naive = (step(solver, hazy, estimates, sigmas) for solver in ("euler", "cold", "cold_naive"))
    state, s, after = euler[0], sigmas[1], sigmas[2]
    implied = (state - (1 - s) * estimates[1]) / s
    degraded = [level * implied + (1 - level) * estimates[1] for level in (s, after)]
    torch.testing.assert_close(euler[1], state - degraded[0] + degraded[1], atol=1e-6, rtol=0)
    torch.testing.assert_close(euler[1], after / s * state + (1 - after / s) * estimates[1], atol=1e-6, rtol=0)
    torch.testing.assert_close(naive[1], after * hazy + (1 - after) * estimates[1], atol=1e-6, rtol=0)
    torch.testing.assert_close(cold[1], cold[0] + (after - s) * (hazy - estimates[1]), atol=1e-6, rtol=0)
    assert (cold[1] - euler[1]).abs().max() > 0.1


def test_a_path_and_its_prediction_are_stored(tmp_path, hazy):
    unet = UNet2DModel.from_config({**tiny_unet().config, "in_channels": 1}).eval()
    pipe = make_pipe(INDI, unet)
    pipe.save_pretrained(tmp_path)
    loaded = HazeMatchingPipeline.from_pretrained(tmp_path)
    assert loaded.interpolant == INDI
    results = [
        each(hazy, 3, generator=torch.Generator().manual_seed(0), tile_size=32).prediction for each in (pipe, loaded)
    ]
    np.testing.assert_array_equal(*results)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"source": "clear"}, '`source` must be "noise" or "hazy"'),
        ({"prediction_type": "epsilon"}, '`prediction_type` must be "velocity" or "clear"'),
        ({"source_noise": -1.0}, "`source_noise` must be 0 or more"),
        ({"source_noise": 0.0}, "`source_noise` must be positive"),
        ({"guided": False}, "the network needs the hazy image"),
        ({"source": "hazy", "guided": False}, "`unet` must have 1 input channels"),
    ],
)
def test_paths_that_make_no_sense_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        HazeMatchingPipeline(tiny_unet(), FlowMatchODEScheduler(), **arguments)


@pytest.mark.parametrize(("solver", "works"), [("midpoint", True), ("ab2", True), ("heun", False), ("rk4", False)])
def test_clear_images_are_not_predicted_at_the_end_of_the_path(solver, works, hazy):
    pipe = HazeMatchingPipeline(tiny_unet(), FlowMatchODEScheduler(solver=solver), prediction_type="clear")
    if works:
        assert np.isfinite(pipe(hazy, 2).prediction).all()
    else:
        with pytest.raises(ValueError, match=f"solver '{solver}'"):
            pipe(hazy, 2)


def test_noise_of_a_call_is_checked(hazy):
    pipe = HazeMatchingPipeline(tiny_unet(), FlowMatchODEScheduler())
    with pytest.raises(ValueError, match="`source_noise` must be positive"):
        pipe(hazy, 2, source_noise=0)


def test_presets_keep_the_scheduler_of_a_network_that_predicts_clear_images():
    indi = make_pipe(INDI, UNet2DModel.from_config({**tiny_unet().config, "in_channels": 1}))
    prepared, steps, _ = with_preset(indi, Preset.balanced)
    assert prepared.scheduler is indi.scheduler and steps == indi.config.default_num_inference_steps
    prepared, steps, _ = with_preset(indi, Preset.fast)
    assert steps == 1 and prepared.scheduler.config.solver == "euler"
    prepared, steps, _ = with_preset(make_pipe(SIFM, tiny_unet()), Preset.balanced)
    assert prepared.scheduler.config.solver == "ab2"
