"""The network that tells how bent things are: what it is shown, what it learns, and how its answers are put."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file

from companion.metrics import pictures_to_tensor
from companion.pretraining.examination import Spoilable
from companion.pretraining.shape import (
    MOST,
    Scale,
    ShapeError,
    bent,
    box_of,
    crops,
    load_shape_error,
    of_things,
    scale,
    train_shape,
)
from companion.pretraining.vae import make_vae


@pytest.fixture
def spoilable(small_world, monkeypatch) -> Spoilable:
    # An untrained autoencoder would leave nothing to see.
    monkeypatch.setattr("companion.pretraining.shape.rebuild", lambda vae, pictures: pictures)
    return Spoilable(small_world / "renders", "train", make_vae().eval(), 24)


def test_boxes_are_drawn_around_masks():
    masks = torch.zeros(2, 1, 40, 80)
    masks[0, :, 10:20, 8:40] = 1
    assert box_of(masks).tolist() == [[pytest.approx(v) for v in (0.1, 0.25, 0.5, 0.5)], [0, 0, 1, 1]]


def test_a_crop_is_centred_on_its_box_and_as_large():
    x = torch.zeros(1, 3, 128, 128)
    x[..., 32:64, 64:96] = 1
    cut, side = crops(x, torch.tensor([[0.5, 0.25, 0.75, 0.5]]), margin=0.5)
    assert cut.shape == (1, 3, 64, 64) and side.tolist() == [64.0]
    assert (cut[..., 17:47, 17:47] > 0.99).all() and cut.mean() == pytest.approx(0.25, abs=0.02)


def test_things_are_bent_by_the_amplitudes_told(spoilable):
    straight, crooked = bent(spoilable, amplitude=0.0), bent(spoilable, amplitude=5.0)
    assert straight.crops.shape == (24, 3, 64, 64) and torch.equal(straight.sides, crooked.sides)
    assert (straight.amplitudes == 0).all() and (crooked.amplitudes == 5).all()
    assert not torch.allclose(straight.crops, crooked.crops, atol=0.05)
    mixed = bent(spoilable).amplitudes
    assert (mixed == 0).any() and mixed.max() <= MOST and mixed.unique().numel() > 8


def test_the_network_learns_to_tell_bent_from_straight(spoilable):
    """On the few renders that it has seen: a fault in the data or in the loss would show."""
    torch.manual_seed(0)
    *_, (_, model) = train_shape(bent(spoilable), 120, batch=24)
    found = scale(model, spoilable, (0.0, 6.0))
    assert found.said[1] > found.said[0] + 0.4


def test_a_published_network_is_loaded(tmp_path):
    model = ShapeError()
    save_file({k: v.half() for k, v in model.state_dict().items()}, tmp_path / "model.safetensors")
    again, x = load_shape_error(tmp_path), torch.rand(2, 3, 64, 64)
    assert torch.allclose(again(x), model(x), atol=1e-3) and not again.training


def test_what_it_says_is_put_as_the_amplitude_of_renders():
    measured = Scale((0.0, 2.0, 6.0), (0.5, 1.5, 3.5), 0.4)
    assert [measured.pixels(said) for said in (0.1, 1.0, 2.5, 9.0)] == [0, 1, 4, 6]


def test_things_are_measured_by_kind(spoilable, monkeypatch):
    x = pictures_to_tensor(spoilable.rendered[:3])
    boxes = [(0.25, 0.25, 0.75, 0.75)] * 3
    model = ShapeError().eval()
    monkeypatch.setattr(model, "forward", lambda cut: torch.tensor([1.0, 2.0, 3.0]) / 64 / 1.3)
    found = of_things(model, x, boxes, ("cube", "cube", "ball"), Scale((0.0, 10.0), (0.0, 10.0), 0.0))
    assert found == {"all": pytest.approx(2.0), "cube": pytest.approx(1.5), "ball": pytest.approx(3.0)}
