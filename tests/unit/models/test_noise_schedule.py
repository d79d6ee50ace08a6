import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, FlowMatchEulerDiscreteScheduler
from torch import Tensor

from unlearn.models.noise_schedule import (
    NoiseSchedule,
    add_noise,
    draw_noise,
    noise_target,
    predict_x0,
    sample_generator,
)

TIMESTEPS = torch.tensor([0, 1, 499, 999])
TYPES = ["epsilon", "v_prediction"]


def scheduler_config(prediction_type: str) -> dict[str, object]:
    return {
        "beta_schedule": "scaled_linear",
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "prediction_type": prediction_type,
        "clip_sample": False,
    }


def batch() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    first, second, third = torch.randn(3, len(TIMESTEPS), 4, 2, 3, generator=generator).unbind()
    return first, second, third


@pytest.mark.parametrize("prediction_type", TYPES)
def test_noise_and_targets_match_diffusers(prediction_type: str) -> None:
    scheduler = DDPMScheduler(**scheduler_config(prediction_type))
    latents, noise, _ = batch()
    schedule = NoiseSchedule.from_scheduler(scheduler)
    expected = {
        "epsilon": noise,
        "v_prediction": scheduler.get_velocity(latents, noise, TIMESTEPS),
    }[prediction_type]
    target = noise_target(latents, noise, TIMESTEPS, schedule)
    torch.testing.assert_close(target, expected)
    torch.testing.assert_close(
        add_noise(latents, noise, TIMESTEPS, schedule),
        scheduler.add_noise(latents, noise, TIMESTEPS),
    )


@pytest.mark.parametrize("scheduler_class", [DDPMScheduler, DDIMScheduler])
@pytest.mark.parametrize("prediction_type", TYPES)
def test_predicted_original_matches_diffusers(
    prediction_type: str, scheduler_class: type[DDPMScheduler] | type[DDIMScheduler]
) -> None:
    scheduler = scheduler_class(**scheduler_config(prediction_type))
    scheduler.set_timesteps(1000)
    output, z_t, _ = batch()
    x0 = predict_x0(output, z_t, TIMESTEPS, NoiseSchedule.from_scheduler(scheduler))
    for i, t in enumerate(TIMESTEPS.tolist()):
        step = scheduler.step(output[i : i + 1], t, z_t[i : i + 1])
        torch.testing.assert_close(x0[i : i + 1], step.pred_original_sample)


@pytest.mark.parametrize("prediction_type", [*TYPES, "flow"])
def test_the_true_target_gives_back_the_latents(prediction_type: str) -> None:
    alphas = DDPMScheduler(**scheduler_config("epsilon")).alphas_cumprod.double()
    schedule = NoiseSchedule.from_alphas_cumprod(alphas, prediction_type)
    if prediction_type == "flow":
        schedule = NoiseSchedule(1 - alphas, alphas, "flow")
    latents, noise = (x.double() for x in batch()[:2])
    z_t = add_noise(latents, noise, TIMESTEPS, schedule)
    target = noise_target(latents, noise, TIMESTEPS, schedule)
    x0 = predict_x0(target, z_t, TIMESTEPS, schedule)
    torch.testing.assert_close(x0, latents, rtol=0, atol=1e-12)


def test_values_worked_by_hand() -> None:
    """ᾱ = 0.64 has roots 0.8 and 0.6: x0 = 1 and ε = 2 give z = 0.8 + 1.2 and v = 1.6 - 0.6."""
    alphas, t = torch.tensor([1.0, 0.64]), torch.tensor([1])
    epsilon, v = (NoiseSchedule.from_alphas_cumprod(alphas, kind) for kind in TYPES)
    one, two = torch.full((1, 1, 1, 1), 1.0), torch.full((1, 1, 1, 1), 2.0)
    close = {"rtol": 0, "atol": 1e-6}
    torch.testing.assert_close(add_noise(one, two, t, v), two, **close)
    torch.testing.assert_close(noise_target(one, two, t, v), one, **close)
    assert torch.equal(noise_target(one, two, t, epsilon), two)
    # z = 3, so that neither answer is the x0 above: (3 - 0.6·2)/0.8 and 0.8·3 - 0.6·2.
    z_t = torch.full((1, 1, 1, 1), 3.0)
    assert predict_x0(two, z_t, t, epsilon).item() == pytest.approx(2.25)
    assert predict_x0(two, z_t, t, v).item() == pytest.approx(1.2)


def test_a_flow_s_noise_is_that_of_diffusers_scheduler_and_its_sigmas_rise() -> None:
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    schedule = NoiseSchedule.from_scheduler(scheduler)
    latents, noise, output = batch()
    times = schedule.times[TIMESTEPS]
    z_t = add_noise(latents, noise, TIMESTEPS, schedule)
    torch.testing.assert_close(z_t, scheduler.scale_noise(latents, times, noise))
    x0 = predict_x0(output, z_t, TIMESTEPS, schedule)
    for i in range(len(TIMESTEPS)):  # one Euler step from σ to 0 goes to x̂0
        own = FlowMatchEulerDiscreteScheduler()
        own.set_timesteps(sigmas=[float(schedule.sigma[TIMESTEPS[i]])])
        step = own.step(output[[i]], own.timesteps[0], z_t[[i]]).prev_sample
        torch.testing.assert_close(x0[[i]], step)
    raw = torch.arange(1, 1001) / 1000
    torch.testing.assert_close(schedule.sigma, 3 * raw / (1 + 2 * raw))
    torch.testing.assert_close(schedule.times, 1000 * schedule.sigma)
    torch.testing.assert_close(schedule.signal, 1 - schedule.sigma)
    scheduler.set_timesteps(7)  # as sampling does
    assert torch.equal(NoiseSchedule.from_scheduler(scheduler).sigma, schedule.sigma)


def test_a_flow_worked_by_hand() -> None:
    """σ = 0.25: x0 = 1 and ε = 3 give z = 0.75 + 0.75 and v = 2; z = 3 less v/4 is 2.5."""
    schedule = NoiseSchedule(torch.tensor([0.75]), torch.tensor([0.25]), "flow")
    one, two, three = (torch.full((1, 1, 1, 1), float(n)) for n in (1, 2, 3))
    at = torch.tensor([0])
    assert add_noise(one, three, at, schedule).item() == 1.5
    assert torch.equal(noise_target(one, three, at, schedule), two)
    assert predict_x0(two, three, at, schedule).item() == 2.5


def test_bfloat16_outputs_are_combined_in_float32() -> None:
    schedule = NoiseSchedule.from_scheduler(DDPMScheduler(**scheduler_config("epsilon")))
    output, z_t, _ = (x.bfloat16() for x in batch())
    x0 = predict_x0(output, z_t, TIMESTEPS, schedule)
    assert x0.dtype == torch.float32
    expected = predict_x0(output.float(), z_t.float(), TIMESTEPS, schedule)
    torch.testing.assert_close(x0, expected)


def test_unknown_prediction_type_is_named() -> None:
    with pytest.raises(ValueError, match="'sample' is not one of epsilon, v_prediction, flow"):
        NoiseSchedule.from_alphas_cumprod(torch.linspace(0.99, 0.01, 1000), "sample")


def test_draws_do_not_depend_on_the_split_of_the_batch() -> None:
    whole = draw_noise(3, 5, range(8), (4, 2, 2), 1000)
    halves = [draw_noise(3, 5, part, (4, 2, 2), 1000) for part in (range(4), range(4, 8))]
    for together, first, second in zip(whole, *halves, strict=True):
        assert torch.equal(together, torch.cat([first, second]))
    shuffled = draw_noise(3, 5, [6, 1], (4, 2, 2), 1000)
    assert torch.equal(shuffled.noise, whole.noise[[6, 1]])


def test_draws_leave_the_global_generator_alone() -> None:
    before = torch.get_rng_state()
    draw_noise(0, 0, [0, 1], (4, 2, 2), 1000)
    assert torch.equal(torch.get_rng_state(), before)


def test_draws_have_the_right_shapes_and_distributions() -> None:
    draw = draw_noise(0, 0, range(256), (4, 4, 4), 1000)
    assert draw.noise.shape == draw.posterior_noise.shape == (256, 4, 4, 4)
    assert draw.timesteps.shape == (256,)
    assert draw.timesteps.dtype == torch.long
    assert 0 <= draw.timesteps.min() < 50
    assert 950 <= draw.timesteps.max() < 1000
    assert abs(draw.timesteps.float().mean().item() - 499.5) < 4 * 288.7 / 16
    values = torch.stack([draw.noise, draw.posterior_noise]).reshape(2, -1)
    assert (values.mean(dim=1).abs() < 4 / 128).all()
    assert (values.std(dim=1) - 1).abs().max() < 0.03
    assert abs(torch.corrcoef(values)[0, 1].item()) < 4 / 128


def test_neighbouring_triples_are_independent() -> None:
    triples = [(s, t, i) for s in range(4) for t in range(12) for i in range(12)]
    assert len({sample_generator(*triple).initial_seed() for triple in triples}) == len(triples)
    samples = torch.stack([torch.randn(64, generator=sample_generator(*t)) for t in triples[:200]])
    correlation = torch.corrcoef(samples) - torch.eye(200)
    assert correlation.abs().max() < 0.7
    assert correlation.std().item() == pytest.approx(1 / 8, rel=0.05)


def test_seeds_stay_the_same_between_releases() -> None:
    assert sample_generator(0, 0, 0).initial_seed() == 759540517790923586
    assert sample_generator(42, 1999, 7).initial_seed() == 6294033551825111124
