"""Training on a GPU. There is none where the tests run: the device "meta" stands in for it, which holds no numbers."""

import copy

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from companion.pretraining import gpu
from companion.pretraining.command import app
from companion.pretraining.vae import Discriminator, Players, make_vae, train_decoder


class Asked(nn.Module):
    """Notes where its inputs are, and answers from the CPU, since nothing can be read from "meta"."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2))
        self.seen = []

    def forward(self, x, *, more):
        self.seen.append((x.device.type, more["t"].device.type, more["name"]))
        return {"answer": torch.ones(3), "name": more["name"]}


def test_a_placed_module_gets_its_tensors_where_it_lives_and_answers_where_they_came_from():
    net = Asked()
    gpu.place(net, "meta")
    assert net.weight.device.type == "meta"
    found = net(torch.zeros(3), more={"t": torch.zeros(1), "name": "x"})
    assert net.seen == [("meta", "meta", "x")]
    assert found["answer"].device.type == "cpu" and found["name"] == "x"


def test_a_copy_is_placed_too_and_placing_twice_does_nothing():
    net = Asked()
    gpu.place(net, "meta")
    gpu.place(net, "meta")
    again = copy.deepcopy(net)
    again(torch.zeros(3), more={"t": torch.zeros(1), "name": "y"})
    assert again.seen == [("meta", "meta", "y")] and net.seen == []
    assert len(again._forward_pre_hooks) == len(again._forward_hooks) == 1


def test_a_module_whose_tensors_are_there_already_is_left_alone():
    net = Asked()
    gpu.place(net, "cpu")
    net(torch.zeros(3), more={"t": torch.zeros(1), "name": "z"})
    assert net.seen == [("cpu", "cpu", "z")] and net.asked_from is None


def test_what_is_not_called_as_a_whole_is_placed_part_by_part():
    players = Players(make_vae(), Discriminator())
    gpu.place(players, "cpu", bfloat16=False)
    placed = {name for name, module in players.named_modules() if getattr(module, "placed", False)}
    assert placed == {"discriminator", *(f"vae.{part}" for part, _ in players.vae.named_children())}
    assert not players.discriminator.rough


def test_a_function_computes_there_and_answers_here():
    seen = []

    def call(x, t):
        seen.extend((x.device.type, t.device.type))
        return torch.ones(2)

    assert gpu.there(call, "meta")(torch.zeros(2), torch.zeros(1)).device.type == "cpu"
    assert seen == ["meta", "meta"]


def test_training_where_it_is_placed_is_the_same_training():
    pictures = torch.randint(0, 256, (4, 128, 128, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    found = []
    for place in (None, lambda model: gpu.place(model, "cpu")):
        *_, (_, ema) = train_decoder(pictures, make_vae(), 2, batch=2, place=place)
        found.append(ema.decoder.conv_in.weight.clone())
    assert torch.equal(*found)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_without_a_gpu_the_command_says_so(tmp_path):
    said = CliRunner().invoke(app, ["unet", "--gpu", "--folder", str(tmp_path)])
    assert said.exit_code == 2 and "torch sees no GPU here; train without --gpu" in " ".join(said.output.split())
