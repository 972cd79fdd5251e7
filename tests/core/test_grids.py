import json
import pathlib

import numpy as np
import pytest
import scipy.stats

from diffusion_jax.core import grids, schedules

PEERS = json.loads((pathlib.Path(__file__).parents[1] / "reference" / "spacing.json").read_text())
GOOD = [line for line in PEERS if "timesteps" in line]
BAD = [line for line in PEERS if "error" in line]
_name = lambda line: f"{line['spacing']} of {line['T']}"


@pytest.mark.parametrize("line", GOOD, ids=_name)
def test_spacings_keep_the_peers_indices(line):
    assert grids.respaced_indices(line["T"], line["spacing"]) == line["timesteps"]


@pytest.mark.parametrize("line", BAD, ids=_name)
def test_spacings_the_peer_refuses_are_errors(line):
    with pytest.raises(ValueError, match=line["spacing"].removeprefix("ddim").split(",")[0]):
        grids.respaced_indices(line["T"], line["spacing"])


def test_the_reference_has_both_kinds():
    assert len(GOOD) == 9
    assert len(BAD) == 2


def test_a_respaced_grid_is_noisy_to_clean_and_keeps_the_indices():
    schedule = schedules.cosine(100)
    grid = grids.respaced(schedule, "ddim10")
    np.testing.assert_array_equal(grid.t, np.arange(90, -1, -10))
    for a, b in zip(grid, schedule.level(np.arange(90, -1, -10)), strict=True):
        np.testing.assert_array_equal(a, b)
    assert np.all(np.diff(grid.logsnr) > 0)


@pytest.mark.parametrize(
    "name", ["cosine_200_ddim25", "linear_1000_50", "cosine_4000_10,20,30", "linear_100_100"]
)
def test_levels_of_a_grid_imply_the_peers_respaced_betas(reference, x64, name):
    peer = reference("chains.npz")
    kind, num_steps, spacing = name.split("_")
    grid = grids.respaced(schedules.SCHEDULES[kind](int(num_steps)), spacing)
    np.testing.assert_array_equal(grid.t[::-1], peer[f"{name}/timestep_map"])
    kept = np.append(1.0, np.asarray(grid.alpha)[::-1] ** 2)
    np.testing.assert_allclose(1 - kept[1:] / kept[:-1], peer[f"{name}/betas"], rtol=1e-9)


def test_one_step_is_a_grid():
    assert grids.respaced_indices(1000, "1") == [0]
    assert grids.respaced(schedules.linear(), "1").alpha.shape == (1,)


def test_every_step_is_a_grid():
    np.testing.assert_array_equal(
        grids.respaced(schedules.linear(), "1000").t, np.arange(999, -1, -1)
    )
    np.testing.assert_array_equal(
        grids.respaced(schedules.linear(), "ddim1000").t, np.arange(999, -1, -1)
    )


@pytest.mark.parametrize("num_steps", [7, 50, 1000])
def test_one_count_is_spread_from_end_to_end(num_steps):
    for count in range(2, num_steps + 1, max(1, num_steps // 50)):
        indices = grids.respaced_indices(num_steps, str(count))
        assert len(set(indices)) == count
        assert (indices[0], indices[-1]) == (0, num_steps - 1)
        assert np.ptp(np.diff(indices)) <= 1


def test_uneven_tables_give_their_first_parts_one_more():
    # 11 = 4 + 4 + 3
    assert grids.respaced_indices(11, "4,4,3") == list(range(11))
    with pytest.raises(ValueError, match="4 of the 3 steps from 8"):
        grids.respaced_indices(11, "4,4,4")


def test_an_impossible_stride_names_the_nearest_possible():
    # strides 3 and 4 of 1000 take ceil(1000 / 3) = 334 and 250
    with pytest.raises(ValueError, match="333 of 1000 steps.* ddim250 and ddim334"):
        grids.respaced(schedules.linear(), "ddim333")


def test_more_strides_than_steps_name_the_most():
    with pytest.raises(ValueError, match="ddim100$"):
        grids.respaced(schedules.linear(100), "ddim101")


@pytest.mark.parametrize(
    "spacing",
    [
        "",
        "ddim",
        "abc",
        "10,",
        ",10",
        "1.5",
        "10;20",
        "ddim10,20",
        "0",
        "ddim0",
        "-5",
        "10,0",
        "101",
        "60,40",
    ],
)
def test_malformed_spacings_are_errors(spacing):
    with pytest.raises(ValueError, match=r"spacing|asks for"):
        grids.respaced(schedules.linear(100), spacing)


def test_respacing_a_continuous_schedule_is_an_error(continuous):
    with pytest.raises(ValueError, match="table"):
        grids.respaced(continuous, "10")


def test_uniform_takes_every_index_unless_told():
    np.testing.assert_array_equal(grids.uniform(schedules.linear(50)).t, np.arange(49, -1, -1))


@pytest.mark.parametrize("count", [2, 3, 10, 49, 50])
def test_uniform_falls_from_end_to_end_of_a_table(count):
    t = np.asarray(grids.uniform(schedules.linear(50), count).t)
    assert np.issubdtype(t.dtype, np.integer)
    assert len(t) == count
    assert (t[0], t[-1]) == (49, 0)
    assert np.all(np.diff(t) < 0)
    assert np.ptp(np.diff(t)) <= 1


def test_uniform_rounds_to_the_nearest_index():
    # 49, 32.67, 16.33, 0
    np.testing.assert_array_equal(grids.uniform(schedules.linear(50), 4).t, [49, 33, 16, 0])


def test_uniform_in_continuous_time(continuous):
    grid = grids.uniform(continuous, 3)
    np.testing.assert_allclose(grid.t, [0.99, 0.5, 0.01], rtol=1e-6)
    np.testing.assert_allclose(grid.alpha[1], np.sqrt(0.5), rtol=1e-6)
    np.testing.assert_allclose(
        grid.sigma[::2], np.sin(np.pi / 2 * np.array([0.99, 0.01])), rtol=1e-5
    )


def test_uniform_of_one_step_is_the_noisiest(continuous):
    np.testing.assert_array_equal(grids.uniform(schedules.linear(50), 1).t, [49])
    np.testing.assert_allclose(grids.uniform(continuous, 1).t, [0.99])


def test_uniform_refuses_counts_it_cannot_have(continuous):
    for count in (0, -1):
        with pytest.raises(ValueError, match="at least 1"):
            grids.uniform(schedules.linear(50), count)
    with pytest.raises(ValueError, match="51 sampling steps asked of a table of 50"):
        grids.uniform(schedules.linear(50), 51)
    with pytest.raises(ValueError, match="give num_steps"):
        grids.uniform(continuous)


def test_a_truncated_grid_keeps_the_levels_between():
    grid = grids.respaced(schedules.cosine(100), "10")
    part = grids.truncated(grid, start=80, stop=20)
    np.testing.assert_array_equal(part.t, [t for t in np.asarray(grid.t) if 20 <= t <= 80])
    np.testing.assert_array_equal(
        part.sigma, np.asarray(grid.sigma)[np.isin(np.asarray(grid.t), part.t)]
    )
    np.testing.assert_array_equal(grids.truncated(grid).t, grid.t)
    with pytest.raises(ValueError, match="no level"):
        grids.truncated(grid, start=10, stop=5)


# Grids of any spread

SPREAD = {name: grids.GRIDS[name] for name in grids.GRIDS if name not in ("respaced", "explicit")}
WITHOUT_T_MIN = ("trailing", "simple", "sgm_uniform", "beta", "align_your_steps")


@pytest.mark.parametrize("schedule", schedules.SCHEDULES)
@pytest.mark.parametrize("name", SPREAD)
def test_every_grid_falls_from_noisy_to_clean_on_its_schedule(x64, schedule, name):
    schedule = schedules.SCHEDULES[schedule]()
    grid = SPREAD[name](schedule, 11)
    assert grid.t.shape == grid.alpha.shape == grid.sigma.shape == (11,)
    assert np.all(np.diff(grid.t) < 0)
    assert np.all(np.diff(grid.logsnr) > 0)
    for a, b in zip(grid, schedule.level(grid.t), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12)
    if name != "leading":
        np.testing.assert_allclose(grid.t[0], schedule.t_max, rtol=1e-9)
    if name not in WITHOUT_T_MIN:
        np.testing.assert_allclose(grid.t[-1], schedule.t_min, rtol=1e-9, atol=1e-9)
    with pytest.raises(ValueError, match="at least 1"):
        SPREAD[name](schedule, 0)


@pytest.mark.parametrize("shift", [3.0, 1.0, 0.4])
def test_a_shifted_grid_has_the_papers_noise(x64, shift):
    """Esser et al. 2024, eq. 23: t / (1 - t) of an even t, sqrt(m / n) times as large."""
    even = np.linspace(1.0, 0.0, 12)[1:-1]
    found = grids.shifted(schedules.rectified_flow(t_min=1e-9, t_max=1.0), 12, shift)
    np.testing.assert_allclose(
        (found.sigma / found.alpha)[1:-1], shift * even / (1 - even), rtol=1e-7
    )
    np.testing.assert_allclose(found.t[np.array([0, -1])], [1.0, 1e-9], rtol=1e-9)


def test_karras_is_the_papers_equation_5(x64):
    # Karras et al. 2022, eq. 5 and table 1: sigma from 80 to 0.002, rho = 7
    i, num = np.arange(18), 18
    for rho in (7.0, 3.0):
        expected = (80 ** (1 / rho) + i / (num - 1) * (0.002 ** (1 / rho) - 80 ** (1 / rho))) ** rho
        np.testing.assert_allclose(
            grids.karras(schedules.edm(), num, rho).sigma, expected, rtol=1e-9
        )
        table = grids.karras(schedules.linear(), num, rho)
        ends = [
            float(schedules.linear().level(t).sigma / schedules.linear().level(t).alpha)
            for t in (999, 0)
        ]
        expected = (
            ends[0] ** (1 / rho) + i / (num - 1) * (ends[1] ** (1 / rho) - ends[0] ** (1 / rho))
        ) ** rho
        np.testing.assert_allclose(table.sigma / table.alpha, expected, rtol=1e-9)


def test_exponential_and_polyexponential_are_k_diffusions(x64, reference):
    # sigma from 15 to 0.03; the peer computes in float32
    peer, schedule = reference("samplers.npz"), schedules.edm(0.03, 15.0)
    np.testing.assert_allclose(
        grids.exponential(schedule, 11).sigma, peer["exponential()"], rtol=1e-5
    )
    for rho in (1.0, 2.0, 7.0):
        found = grids.polyexponential(schedule, 11, rho).sigma
        np.testing.assert_allclose(found, peer[f"polyexponential(rho={rho})"], rtol=1e-5)


@pytest.mark.parametrize("model", ["sd15", "sdxl", "svd"])
def test_align_your_steps_takes_the_ten_steps_that_diffusers_has(x64, reference, model):
    peer = reference("samplers.npz")[f"align_your_steps(model='{model}')"]
    schedule = schedules.edm(0.001, peer[0])
    grid = grids.align_your_steps(schedule, 10, model)
    np.testing.assert_allclose(grid.sigma, peer[:-1], rtol=1e-9)
    assert peer[-1] == 0.0
    # twice as many: geometric means between neighbours
    fine = grids.align_your_steps(schedule, 20, model).sigma
    np.testing.assert_allclose(fine[::2], peer[:-1], rtol=1e-9)
    np.testing.assert_allclose(fine[1:-1:2], np.sqrt(peer[:-2] * peer[1:-1]), rtol=1e-9)


def test_align_your_steps_keeps_to_the_schedules_ends(x64):
    narrow = grids.align_your_steps(schedules.edm(0.2, 3.0), 7).sigma
    # between them lie six of the published ones, and seven steps
    within = [3.0, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399]
    np.testing.assert_allclose(narrow, within, rtol=1e-9)
    wide = grids.align_your_steps(schedules.edm(), 10).sigma
    np.testing.assert_allclose(wide[:3], [80.0, 6.475, 3.861], rtol=1e-9)


def test_simple_sgm_uniform_and_beta_are_those_of_the_web_interfaces(x64):
    schedule = schedules.linear(1000)
    steps = 7
    # sigmas[-(1 + int(x * 1000 / steps))]
    expected = [999 - int(x * (1000 / steps)) for x in range(steps)]
    np.testing.assert_array_equal(grids.simple(schedule, steps).t, expected)
    even = np.linspace(999, 0, steps + 1)[:-1]
    np.testing.assert_allclose(grids.sgm_uniform(schedule, steps).t, even)
    quantiles = scipy.stats.beta.ppf(1 - np.linspace(0, 1, steps, endpoint=False), 0.6, 0.6)
    np.testing.assert_allclose(grids.beta(schedule, steps).t, 999 * quantiles)
    np.testing.assert_allclose(grids.beta(schedule, steps, 1.0, 1.0).t, even)
    flow = schedules.rectified_flow(t_min=0.2, t_max=1.0)
    for grid in (grids.simple, grids.sgm_uniform):
        np.testing.assert_allclose(grid(flow, 4).t, [1, 0.8, 0.6, 0.4])
    with pytest.raises(ValueError, match="1001 sampling steps"):
        grids.simple(schedule, 1001)


def test_logsnr_is_even_in_the_log_snr(x64):
    for name in ("linear", "vp", "rectified_flow"):
        steps = np.diff(grids.logsnr(schedules.SCHEDULES[name](), 30).logsnr)
        np.testing.assert_allclose(steps, steps[0], rtol=1e-6)


def test_the_spacings_of_a_table_are_the_usual_ones():
    schedule = schedules.linear(1000)
    # Lin et al. 2023, table 2, whose t begin at 1
    np.testing.assert_array_equal(grids.trailing(schedule, 10).t, np.arange(1000, 0, -100) - 1)
    np.testing.assert_array_equal(grids.leading(schedule, 10).t, np.arange(900, -1, -100))
    np.testing.assert_array_equal(
        grids.leading(schedule, 10).t, grids.respaced(schedule, "ddim10").t
    )
    np.testing.assert_allclose(grids.quadratic(schedule, 4).t, 999 * np.array([1, 4 / 9, 1 / 9, 0]))
    assert np.issubdtype(grids.trailing(schedule, 10).t.dtype, np.integer)
    np.testing.assert_array_equal(
        grids.trailing(schedule, 7).t, np.round(np.arange(1000, 0, -1000 / 7)) - 1
    )
    with pytest.raises(ValueError, match="1001 sampling steps"):
        grids.trailing(schedule, 1001)


def test_the_spacings_of_continuous_time_leave_out_an_end():
    schedule = schedules.rectified_flow(t_min=0.2, t_max=1.0)
    np.testing.assert_allclose(grids.trailing(schedule, 4).t, [1, 0.8, 0.6, 0.4])
    np.testing.assert_allclose(grids.leading(schedule, 4).t, [0.8, 0.6, 0.4, 0.2])


def test_a_log_snr_of_minus_infinity_is_a_clear_error():
    for grid in (grids.karras, grids.logsnr):
        with pytest.raises(ValueError, match="alpha > 0"):
            grid(schedules.rectified_flow(t_max=1.0), 5)


def test_explicit_takes_any_t_in_any_order():
    schedule = schedules.linear(100)
    for chosen in ("0,99,20", [20, 0, 99], np.array([99.0, 20.0, 0.0])):
        grid = grids.explicit(schedule, chosen)
        np.testing.assert_array_equal(grid.t, [99, 20, 0])
        np.testing.assert_array_equal(grid.sigma, schedule.level(np.array([99, 20, 0])).sigma)
    np.testing.assert_allclose(grids.explicit(schedule, "1.5,40").t, [40, 1.5])
    np.testing.assert_allclose(grids.explicit(schedules.vp(), "0.1,0.9").t, [0.9, 0.1])
    for wrong, message in (
        ("a", "values of t"),
        ("3,3", "twice"),
        ("100", "between 0 and 99"),
        ("-1,2", "between"),
        ([], "between"),
    ):
        with pytest.raises(ValueError, match=message):
            grids.explicit(schedule, wrong)


def test_quantized_moves_a_grid_to_the_nearest_indices():
    schedule = schedules.cosine(50)
    grid = grids.explicit(schedule, "48.6,20.4,20.1,0.2")
    moved = grids.quantized(schedule, grid)
    np.testing.assert_array_equal(moved.t, [49, 20, 0])
    assert np.issubdtype(moved.t.dtype, np.integer)
    with pytest.raises(ValueError, match="table"):
        grids.quantized(schedules.vp(), grids.uniform(schedules.vp(), 3))


def test_between_is_between_in_log_snr(x64):
    schedule = schedules.vp()
    t, s = schedule.level(0.8), schedule.level(0.3)
    for fraction in (0.0, 0.25, 1.0):
        expected = t.logsnr + fraction * (s.logsnr - t.logsnr)
        of_schedule, free = grids.between(t, s, fraction, schedule), grids.between(t, s, fraction)
        np.testing.assert_allclose([of_schedule.logsnr, free.logsnr], [expected] * 2, rtol=1e-9)
        for a, b in zip(of_schedule, schedule.level(of_schedule.t), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-9)
        np.testing.assert_allclose(
            free.alpha, t.alpha ** (1 - fraction) * s.alpha**fraction, rtol=1e-9
        )
        np.testing.assert_allclose(free.t, 0.8 - 0.5 * fraction, rtol=1e-9)
