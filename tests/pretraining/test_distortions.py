"""Each distortion spoils what it should, by as much as it says, and leaves the rest alone."""

from __future__ import annotations

import pytest
import torch

from companion.pretraining import distortions as d

SIZE = 64


def square(left: int = 20, top: int = 24, side: int = 24) -> torch.Tensor:
    mask = torch.zeros(1, 1, SIZE, SIZE)
    mask[..., top : top + side, left : left + side] = 1
    return mask


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


EMPTY = torch.full((1, 3, SIZE, SIZE), -1.0)
MASK = square()
PICTURE = torch.lerp(EMPTY, torch.ones(()), MASK)


def test_a_blur_keeps_the_mean_and_spreads_a_point_as_a_gaussian():
    x = torch.zeros(1, 2, 33, 33)
    x[..., 16, 16] = 1
    y = d.blur(x, 2.0)
    assert y.sum().item() == pytest.approx(2, abs=1e-4)
    rows = y[0, 0].sum(1)
    at = torch.arange(33.0) - 16
    assert float((rows * at**2).sum()) == pytest.approx(4.0, rel=0.05)  # the variance
    assert torch.equal(d.blur(x, 0), x)


@pytest.mark.parametrize("amplitude", [0.5, 2.0, 4.0])
def test_a_warp_moves_pixels_by_its_amplitude(amplitude):
    """On a picture whose colours are its coordinates, colours say where a pixel came from."""
    ys, xs = torch.meshgrid(torch.arange(SIZE), torch.arange(SIZE), indexing="ij")
    ramp = torch.stack([xs, ys, 0 * xs])[None].float() / SIZE - 0.5
    moved = (d.warp(ramp, MASK, torch.tensor([amplitude]), seeded()) - ramp)[:, :2] * SIZE
    inside = MASK[0, 0] > 0
    size = (moved**2).sum(1)[0][inside].mean().sqrt()
    assert size.item() == pytest.approx(amplitude, rel=0.15)
    assert moved[0, :, inside].mean(1).abs().max() < 0.15 * amplitude + 0.05  # bent, not moved as a whole
    far = d.around(MASK)[0, 0] < 1e-3
    assert moved[0, :, far].abs().max() < 0.05


def test_no_amplitude_is_no_warp():
    picture = torch.rand(2, 3, SIZE, SIZE, generator=seeded(1)) * 2 - 1
    same = d.warp(picture, MASK.expand(2, -1, -1, -1), torch.zeros(2), seeded())
    assert torch.allclose(same, picture, atol=1e-5)


def test_a_ghost_shows_two_outlines_and_no_amplitude_none():
    made = d.ghost(PICTURE, MASK, torch.tensor([8.0]), seeded())
    bent = d.warp(PICTURE, MASK, torch.tensor([8.0]), seeded())
    one_of_two = (bent * PICTURE) < -0.99  # the thing in one of the two shapes, the ground in the other
    assert one_of_two.float().sum() > 0.1 * 3 * MASK.sum()
    assert torch.allclose(made[one_of_two], torch.zeros(()), atol=0.01)
    assert torch.allclose(d.ghost(PICTURE, MASK, torch.zeros(1), seeded()), PICTURE, atol=1e-5)


def test_melting_takes_the_corners_off():
    made = d.melt(PICTURE, MASK, EMPTY, 4.0)
    corner, edge, middle = made[0, 0, 25, 21], made[0, 0, 36, 21], made[0, 0, 36, 32]
    assert middle > 0.95 and edge > corner + 0.5
    assert made[0, 0, 5, 5] == pytest.approx(-1, abs=1e-2)


def test_a_cut_takes_half_away():
    kept = [((d.cut(PICTURE, MASK, EMPTY, seeded(s)) > 0).float() * MASK).sum() / MASK.sum() / 3 for s in range(8)]
    assert all(0.4 < float(share) < 0.6 for share in kept)
    sides = {bool(d.cut(PICTURE, MASK, EMPTY, seeded(s))[0, 0, 30, 25] > 0) for s in range(8)}
    assert sides == {True, False}


def test_a_chimera_is_one_above_and_the_other_below():
    other = -PICTURE
    made = d.chimera(PICTURE, other, MASK, seeded())
    assert torch.allclose(made[..., :24, :], PICTURE[..., :24, :], atol=0.01)
    assert torch.allclose(made[..., 48:, :], other[..., 48:, :], atol=0.01)


def test_out_of_focus_is_within_the_things_alone():
    board = ((torch.arange(SIZE)[:, None] + torch.arange(SIZE)) % 2 * 2.0 - 1).expand(1, 3, -1, -1)
    made = d.low_pass(board, MASK, 2.0)
    assert made[0, :, 30:40, 26:36].abs().max() < 0.05
    assert torch.equal(made[..., :8, :8], board[..., :8, :8])


def test_noise_is_on_the_cells_of_things():
    latents, cells = torch.randn(2, 4, 8, 8, generator=seeded()), torch.zeros(2, 8, 8)
    cells[:, 2:4, 2:4] = 1
    made = d.noisy_latents(latents, cells, torch.tensor([0.0, 0.5]), lambda z: z, seeded(1)) - latents
    assert made[0].abs().max() == 0 and (made[1][:, cells[1] == 0] == 0).all()
    assert made[1][:, 2:4, 2:4].std().item() == pytest.approx(0.5 * latents.std().item(), rel=0.6)


def test_a_patchwork_has_half_of_each_picture():
    one, other = torch.ones(3, 3, SIZE, SIZE), -torch.ones(3, 3, SIZE, SIZE)
    mixed = d.patchwork(one, other, seeded())
    assert mixed.mean((1, 2, 3)).abs().max() < 0.05 and (mixed.abs() > 0.9).float().mean() > 0.6
    assert not torch.equal(mixed[0], mixed[1]) and torch.equal(mixed, d.patchwork(one, other, seeded()))


@pytest.mark.parametrize("way", d.WAYS)
def test_every_way_spoils_things_alone_and_more_when_strong(way):
    other = torch.lerp(EMPTY, torch.full((), 0.5), square(26))
    scenes = {"picture": PICTURE, "empty": EMPTY, "swapped": other, "swapped_mask": square(26)}
    scenes["latents"] = torch.nn.functional.avg_pool2d(PICTURE, 8)
    changes = []
    for between in d.WAYS[way]:
        strength = sum(between) / 2 if between else 0.0
        x = d.spoil(
            way, strength, scenes, MASK, lambda z: torch.nn.functional.interpolate(z, scale_factor=8.0), seeded()
        )
        assert x.shape == PICTURE.shape and x.abs().max() <= 1
        far = torch.nn.functional.max_pool2d(torch.maximum(MASK, square(26)), 41, 1, 20) == 0
        assert not far.any() or (x - PICTURE).abs()[far.expand_as(x)].max() < 0.05
        changes.append(float((x - PICTURE).abs().mean()))
    assert changes[1] > 0.01 and (d.WAYS[way][0] is None or changes[0] < changes[1])


def test_an_unknown_way_is_refused():
    with pytest.raises(ValueError, match="'crush' is no way to spoil a thing; the ways are warp, melt"):
        d.spoil(
            "crush",
            1.0,
            dict.fromkeys(("picture", "empty", "swapped", "swapped_mask", "latents"), EMPTY),
            MASK,
            lambda z: z,
            seeded(),
        )
