import math

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from haze_pipeline import FlowMatchODEScheduler


def integrate(scheduler, velocity, sample):
    for timestep in scheduler.timesteps:
        sigma = timestep / scheduler.config.num_train_timesteps
        sample = scheduler.step(velocity(sample, sigma), timestep, sample).prev_sample
    return sample


def closed_form_error(num_inference_steps, **config):
    """
    The error at σ = 0 of the ODE dx/dσ = −2σx with x(1) = 1, whose solution is exp(1 − σ²). The derivative depends on
    state and time.
    """
    scheduler = FlowMatchODEScheduler(**config)
    scheduler.set_timesteps(num_inference_steps)
    return abs(integrate(scheduler, lambda x, sigma: -2 * sigma * x, torch.ones(1).double()).item() - math.e)


@pytest.mark.parametrize("shift", [1.0, 2.0])
@pytest.mark.parametrize(
    ("solver", "num_inference_steps", "quotient"),
    [("euler", 64, 2), ("midpoint", 16, 4), ("heun", 16, 4), ("ab2", 16, 4), ("rk4", 8, 16)],
)
def test_halving_the_step_divides_the_error_by_the_order(solver, num_inference_steps, quotient, shift):
    coarse = closed_form_error(num_inference_steps, solver=solver, shift=shift)
    fine = closed_form_error(2 * num_inference_steps, solver=solver, shift=shift)
    assert coarse / fine == pytest.approx(quotient, rel=0.15)


@pytest.mark.parametrize(("solver", "calls"), [("euler", 1), ("midpoint", 2), ("heun", 2), ("ab2", 1), ("rk4", 4)])
def test_one_timestep_per_network_call(solver, calls):
    scheduler = FlowMatchODEScheduler(solver=solver)
    scheduler.set_timesteps(5)
    assert scheduler.order == calls and len(scheduler.timesteps) == 5 * calls


def test_shift_warps_the_grid_as_the_stock_scheduler_does():
    sigmas = np.linspace(1, 0.1, 10)
    ours, stock = FlowMatchODEScheduler(shift=3.0), FlowMatchEulerDiscreteScheduler(shift=3.0)
    ours.set_timesteps(sigmas=sigmas)
    stock.set_timesteps(sigmas=sigmas)
    torch.testing.assert_close(ours.sigmas, stock.sigmas)


@pytest.mark.parametrize("config", [{"solver": "leapfrog"}, {"shift": 0.0}])
def test_unknown_solvers_and_shifts_are_refused(config):
    with pytest.raises(ValueError, match=next(iter(config))):
        FlowMatchODEScheduler(**config)


@pytest.mark.parametrize("solver", ["euler", "midpoint", "heun", "ab2", "rk4"])
@pytest.mark.parametrize("num_inference_steps", [1, 3, 19])
def test_constant_velocity_leads_exactly_from_noise_to_data(num_inference_steps, solver):
    noise, data = torch.randn(2, 1, 4, 4), torch.randn(2, 1, 4, 4)
    scheduler = FlowMatchODEScheduler(solver=solver)
    scheduler.set_timesteps(num_inference_steps)
    torch.testing.assert_close(integrate(scheduler, lambda x, sigma: noise - data, noise), data)


def test_19_steps_are_the_grid_of_the_reference():
    scheduler = FlowMatchODEScheduler()
    scheduler.set_timesteps(19)
    t = 1 - scheduler.timesteps.numpy() / 1000
    np.testing.assert_allclose(t, np.linspace(0, 1, 20)[:-1], atol=1e-7)
    assert t[0] == 0


def test_equals_the_stock_scheduler_on_the_same_grid():
    sigmas = np.linspace(1, 1 / 19, 19)
    ours, stock = FlowMatchODEScheduler(), FlowMatchEulerDiscreteScheduler()
    ours.set_timesteps(sigmas=sigmas)
    stock.set_timesteps(sigmas=sigmas)
    torch.testing.assert_close(ours.timesteps, stock.timesteps)
    start = torch.randn(1, 1, 8, 8)

    def velocity(x, sigma):
        return torch.sin(3 * x) * (1 + sigma)

    torch.testing.assert_close(integrate(ours, velocity, start), integrate(stock, velocity, start))


def test_step_returns_a_tuple_on_request_and_keeps_the_dtype():
    scheduler = FlowMatchODEScheduler()
    scheduler.set_timesteps(4)
    sample = torch.randn(1, 1, 4, 4, dtype=torch.bfloat16)
    (result,) = scheduler.step(sample, scheduler.timesteps[0], sample, return_dict=False)
    assert result.dtype == torch.bfloat16 and result.shape == sample.shape
    assert scheduler.step_index == 1


def test_begin_index_continues_a_trajectory():
    whole, rest = FlowMatchODEScheduler(), FlowMatchODEScheduler()
    whole.set_timesteps(4)
    rest.set_timesteps(4)
    rest.set_begin_index(2)
    states = [torch.ones(1)]
    for timestep in whole.timesteps:
        states.append(whole.step(-states[-1], timestep, states[-1]).prev_sample)
    resumed = states[2]
    for timestep in rest.timesteps[2:]:
        resumed = rest.step(-resumed, timestep, resumed).prev_sample
    torch.testing.assert_close(resumed, states[4])


def test_scale_noise_is_the_straight_path():
    scheduler = FlowMatchODEScheduler()
    data, noise = torch.randn(3, 1, 2, 2), torch.randn(3, 1, 2, 2)
    mixed = scheduler.scale_noise(data, torch.tensor([0.0, 250.0, 1000.0]), noise)
    torch.testing.assert_close(mixed[0], data[0])
    torch.testing.assert_close(mixed[1], 0.25 * noise[1] + 0.75 * data[1])
    torch.testing.assert_close(mixed[2], noise[2])


def test_saving_and_loading_keeps_the_config(tmp_path):
    FlowMatchODEScheduler(num_train_timesteps=500).save_pretrained(tmp_path)
    assert FlowMatchODEScheduler.from_pretrained(tmp_path).config.num_train_timesteps == 500


def test_a_stock_config_loads():
    stock = FlowMatchEulerDiscreteScheduler(num_train_timesteps=500)
    assert FlowMatchODEScheduler.from_config(stock.config).config.num_train_timesteps == 500


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "exactly one"),
        ({"num_inference_steps": 2, "sigmas": [1.0]}, "exactly one"),
        ({"num_inference_steps": 0}, "at least 1"),
        ({"sigmas": []}, "descend"),
        ({"sigmas": [0.5, 0.7]}, "descend"),
        ({"sigmas": [1.2, 0.5]}, "descend"),
        ({"sigmas": [1.0, 0.0]}, "descend"),
    ],
)
def test_bad_grids_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        FlowMatchODEScheduler().set_timesteps(**arguments)


def test_errors_explain_wrong_use():
    scheduler = FlowMatchODEScheduler()
    with pytest.raises(ValueError, match="set_timesteps"):
        scheduler.step(torch.ones(1), 1000.0, torch.ones(1))
    scheduler.set_timesteps(4)
    with pytest.raises(ValueError, match="not one of"):
        scheduler.step(torch.ones(1), 999.0, torch.ones(1))


# Solvers fitted to a network.

FITTED = {"3": {"sigmas": [1.0, 0.8, 0.3], "weights": [[-0.2], [0.3, -0.8], [0.1, -0.1, -0.3]]}}


def test_a_bespoke_solver_adds_its_weighted_slopes():
    scheduler = FlowMatchODEScheduler(solver="bespoke", bespoke=FITTED, shift=3.0)
    scheduler.set_timesteps(3)
    torch.testing.assert_close(scheduler.timesteps, torch.tensor([1000.0, 800.0, 300.0]))  # fitted as they are
    slopes = [torch.tensor([2.0]), torch.tensor([3.0]), torch.tensor([5.0])]
    state = torch.tensor([1.0])
    expected = [1 - 0.4, 0.6 + 0.6 - 2.4, -1.2 + 0.2 - 0.3 - 1.5]
    for timestep, slope, value in zip(scheduler.timesteps, slopes, expected, strict=True):
        state = scheduler.step(slope, timestep, state).prev_sample
        assert state.item() == pytest.approx(value)


@pytest.mark.parametrize("num_inference_steps", [1, 3])
def test_a_bespoke_solver_integrates_a_constant_velocity_exactly(num_inference_steps):
    noise, data = torch.randn(2, 1, 4, 4), torch.randn(2, 1, 4, 4)
    scheduler = FlowMatchODEScheduler(solver="bespoke", bespoke=FITTED)
    for _ in range(2):
        scheduler.set_timesteps(num_inference_steps)
        torch.testing.assert_close(integrate(scheduler, lambda x, sigma: noise - data, noise), data)


def test_a_bespoke_solver_is_restored_from_its_config(tmp_path):
    FlowMatchODEScheduler(solver="bespoke", bespoke=FITTED).save_pretrained(tmp_path)
    loaded = FlowMatchODEScheduler.from_pretrained(tmp_path)
    assert loaded.config.solver == "bespoke" and dict(loaded.config.bespoke) == FITTED


def test_a_bespoke_solver_refuses_step_numbers_it_was_not_fitted_for():
    with pytest.raises(ValueError, match="needs the fitted weights"):
        FlowMatchODEScheduler(solver="bespoke")
    scheduler = FlowMatchODEScheduler(solver="bespoke", bespoke=FITTED)
    with pytest.raises(ValueError, match="one of 3 or 1"):
        scheduler.set_timesteps(4)
    with pytest.raises(ValueError, match="one of 3 or 1"):
        scheduler.set_timesteps(sigmas=[1.0, 0.5])
    scheduler.set_timesteps(3)
    with pytest.raises(ValueError, match="begin_index"):
        scheduler.set_begin_index(1)
