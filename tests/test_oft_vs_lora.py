"""Orthogonal finetuning turns and does nothing else; it is the paper's, PEFT's where that is exact, and saved whole."""

from __future__ import annotations

import copy
import json
import math

import pytest
import torch
from diffusers import UNet2DConditionModel
from peft import OFTConfig, get_peft_model
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel

from companion import oft_vs_lora, training
from companion.energy import angle_drift, hyperspherical_energy, orthogonality_error
from companion.models import seeded
from companion.oft_vs_lora import OFT, SLIDERS, Settings, cayley, power, skew

STATES = torch.randn(1, 3, 32, generator=seeded(9))


def tiny_unet() -> UNet2DConditionModel:
    torch.manual_seed(0)
    return UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(16, 32),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=32,
        attention_head_dim=4,
        norm_num_groups=4,
    ).eval()


def answer(unet: nn.Module) -> torch.Tensor:
    x = torch.randn(2, 4, 8, 8, generator=seeded(3))
    with torch.no_grad():
        return unet(x, 300, STATES.expand(2, -1, -1)).sample


def same(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Equal but for the last digits of products, which depend on where in memory a matrix lies."""
    return torch.allclose(a, b, atol=1e-6)


def disturb(parameters, scale: float = 1.0) -> None:
    generator = seeded(1)
    for p in parameters:
        p.data.copy_(scale * torch.randn(p.shape, generator=generator, dtype=p.dtype))


def random_Q(b: int = 6, size: float = 1.0, blocks: int = 3) -> torch.Tensor:
    """Skew-symmetric blocks in double precision, of a spectral norm of `size`."""
    Q = skew(torch.randn(blocks, b * (b - 1) // 2, generator=seeded(b), dtype=torch.float64), b)
    return Q * size / torch.linalg.matrix_norm(Q, 2)[:, None, None]


def layer_of(kind: str) -> nn.Module:
    torch.manual_seed(2)
    return {
        "linear": lambda: nn.Linear(12, 20),
        "conv3": lambda: nn.Conv2d(4, 10, 3, padding=1, stride=2),
        "conv2x3": lambda: nn.Conv2d(4, 10, (2, 3)),
        "conv1": lambda: nn.Conv2d(8, 10, 1, bias=False),
        "groups": lambda: nn.Conv2d(8, 6, 3, groups=2),
    }[kind]()


KINDS = ["linear", "conv3", "conv2x3", "conv1", "groups"]


# ---- Rotations -------------------------------------------------------------------------------------------------------


def test_cayley_is_torch_s_own_and_the_paper_s():
    Q = random_Q()
    identity = torch.eye(6, dtype=Q.dtype)
    assert torch.allclose(cayley(Q), (identity + Q) @ torch.linalg.inv(identity - Q), atol=1e-14)
    holder = nn.Module()
    holder.weight = nn.Parameter(identity.expand(3, 6, 6).clone())
    nn.utils.parametrizations.orthogonal(holder, orthogonal_map="cayley")
    with torch.no_grad():  # torch has Q / 2 in the place of Q, and reads what is below the diagonal
        holder.parametrizations.weight.original.copy_((2 * Q).tril())
    assert torch.allclose(cayley(Q), holder.weight, atol=1e-14)
    assert torch.equal(cayley(torch.zeros(2, 5, 5)), torch.eye(5).expand(2, 5, 5))
    assert torch.allclose(torch.linalg.det(cayley(Q)), torch.ones(3, dtype=Q.dtype)), "no reflection"


@pytest.mark.parametrize("size", [1e-4, 0.1, 1.0, 10.0])
@pytest.mark.parametrize("b", [4, 48, 320])
def test_rotations_are_orthogonal_in_single_precision(b, size):
    R = cayley(random_Q(b, size, 2).float())
    assert R.dtype == torch.float32
    assert orthogonality_error(R) < (1e-5 if size > 1 else 2e-6)


def test_a_plane_turns_by_twice_the_arc_tangent():
    turn = cayley(torch.tensor([[0.0, -0.5], [0.5, 0.0]], dtype=torch.float64))
    a = 2 * math.atan(0.5)
    expected = torch.tensor([[math.cos(a), -math.sin(a)], [math.sin(a), math.cos(a)]], dtype=torch.float64)
    assert torch.allclose(turn, expected, atol=1e-15)


@pytest.mark.parametrize("size", [0.3, 1.0, 5.0])
def test_the_power_of_a_rotation_is_its_geodesic(size):
    Q = random_Q(7, size)
    R, identity = cayley(Q), torch.eye(7, dtype=Q.dtype)
    assert torch.allclose(power(Q, 0), identity.expand_as(R), atol=1e-14)
    assert torch.allclose(power(Q, 1), R, atol=1e-13)
    assert torch.allclose(power(Q, -1), R.mT, atol=1e-13)
    for s, t in ((0.3, 0.7), (0.5, 0.5), (1.5, -0.25)):
        assert torch.allclose(power(Q, s) @ power(Q, t), power(Q, s + t), atol=1e-13)
        assert orthogonality_error(power(Q, t)) < 1e-13
    speed = [torch.linalg.matrix_norm(power(Q, t + 1e-4) - power(Q, t)) for t in (0.0, 0.4, 0.9)]
    assert torch.allclose(speed[0], speed[1]) and torch.allclose(speed[0], speed[2]), "a constant pace"
    assert power(Q.float(), 0.5).dtype == torch.float32


def test_three_sliders_are_wrong_each_in_its_way():
    """With one plane, in which Q turns by 2 arctan w, every slider's turn and length are known exactly."""
    w, t = 0.87, 0.5
    Q = torch.tensor([[0.0, -w], [w, 0.0]], dtype=torch.float64)
    turned = {name: slider(Q, t)[:, 0] for name, slider in SLIDERS.items()}
    angle = {name: math.atan2(v[1], v[0]) / (2 * math.atan(w)) for name, v in turned.items()}
    length2 = {name: float(v @ v) for name, v in turned.items()}
    assert angle["R to the power t"] == pytest.approx(t) and length2["R to the power t"] == pytest.approx(1)
    assert angle["Cayley of t Q"] == pytest.approx(math.atan(t * w) / math.atan(w)) and angle["Cayley of t Q"] > 0.57
    assert length2["Cayley of t Q"] == pytest.approx(1)
    # The middle of a chord is on the right ray, but short: cos^2 of half the angle, here 0.43 less than 1.
    assert angle["straight line"] == pytest.approx(t)
    assert 1 - length2["straight line"] == pytest.approx(w * w / (1 + w * w)) == pytest.approx(0.43, abs=0.01)
    assert angle["strength applied twice"] < 0.3 and length2["strength applied twice"] < 0.8
    twice = SLIDERS["strength applied twice"]
    assert torch.equal(twice(Q, -0.5), twice(Q, 0.5)) and not torch.allclose(power(Q, -0.5), power(Q, 0.5))
    for slider in SLIDERS.values():
        assert torch.allclose(slider(Q, 0.0), torch.eye(2, dtype=Q.dtype)) and torch.allclose(slider(Q, 1.0), cayley(Q))


# ---- Layers ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("share", [False, True])
def test_a_layer_s_neurons_turn_together(kind, share):
    model = nn.Sequential(layer_of(kind))
    layer = model[0]
    W0 = layer.weight.detach().clone()
    x = torch.randn(2, 12) if kind == "linear" else torch.randn(2, layer.in_channels, 7, 7)
    before = layer(x)
    parameters = oft_vs_lora.apply(model, "0", blocks=2, share=share)
    d = W0[0].numel()
    assert sum(p.numel() for p in parameters) == d * (d // 2 - 1) // 2 // (2 if share else 1)
    assert torch.equal(layer(x), before), "R = I at the start"
    disturb(parameters, 5)
    W = layer.weight.detach()
    # R turns flattened kernels, in blocks of neighbours in torch's order.
    R = torch.block_diag(*(oft_vs_lora.adapters(model)["0"].R().detach().expand(2, -1, -1)))
    assert orthogonality_error(R) < 1e-5
    assert torch.allclose(W.flatten(1), W0.flatten(1) @ R.T, atol=1e-5)
    assert (W - W0).abs().max() > 0.05
    functional = nn.functional.linear if kind == "linear" else layer._conv_forward
    assert torch.allclose(layer(x), functional(x, W, layer.bias), atol=1e-6)
    assert torch.allclose(W.flatten(1).norm(dim=1), W0.flatten(1).norm(dim=1), rtol=1e-5)
    assert angle_drift(W0, W) < 1e-5
    energy = hyperspherical_energy(W0.double())
    assert hyperspherical_energy(W.double()) == pytest.approx(energy, rel=1e-6)
    columns = [hyperspherical_energy(w.flatten(1).T.double()) for w in (W0, W)]
    assert columns[1] != pytest.approx(columns[0], rel=1e-4), "of rows it is kept, of columns not"


def test_blocks_of_a_convolution_are_whole_channels_with_their_taps():
    model = nn.Sequential(nn.Conv2d(4, 10, 3))
    W0 = model[0].weight.detach().clone()
    (q,) = oft_vs_lora.apply(model, "0", blocks=2)
    q.data[1].normal_(generator=seeded(0))
    changed = (model[0].weight - W0).detach().abs().amax((0, 2, 3)) > 1e-6
    assert changed.tolist() == [False, False, True, True]


def test_rescaling_changes_lengths_alone():
    model = nn.Sequential(nn.Linear(12, 20))
    W0 = model[0].weight.detach().clone()
    x = torch.randn(3, 12)
    q, s = oft_vs_lora.apply(model, "0", rescale=True)
    assert torch.equal(model[0].weight, W0) and s.shape == (20,)
    disturb([q, s])
    R = torch.block_diag(*oft_vs_lora.adapters(model)["0"].R().detach())
    D = torch.diag(s.detach().exp())
    z = (R @ W0.T @ D).T @ x.T + model[0].bias[:, None]  # the paper's W has neurons as columns
    assert torch.allclose(model(x).T, z, atol=1e-5)
    assert angle_drift(W0, model[0].weight) < 1e-5
    assert hyperspherical_energy(model[0].weight) == pytest.approx(hyperspherical_energy(W0), rel=1e-5)
    oft_vs_lora.merge(model, 0.5)
    assert torch.allclose(model[0].weight.norm(dim=1), W0.norm(dim=1) * (s / 2).exp(), rtol=1e-5)


@pytest.mark.parametrize("share", [False, True])
def test_it_is_peft_s_exact_oft_with_the_other_sign(share):
    torch.manual_seed(0)
    base = nn.Sequential(nn.Linear(12, 20))
    config = OFTConfig(r=3, oft_block_size=0, target_modules=["0"], use_cayley_neumann=False, block_share=share)
    theirs = get_peft_model(copy.deepcopy(base), config)
    (weight,) = [p for p in theirs.parameters() if p.requires_grad]
    (q,) = oft_vs_lora.apply(base, "0", blocks=3, share=share)
    assert q.shape == weight.shape
    disturb([weight])
    q.data = -weight.data * q.shape[1] ** 0.5
    x = torch.randn(5, 12)
    assert torch.allclose(base(x), theirs(x), atol=1e-5)
    base(x).square().sum().backward()
    theirs(x).square().sum().backward()
    assert torch.allclose(q.grad * q.shape[1] ** 0.5, -weight.grad, atol=1e-4)


@pytest.mark.parametrize("kind", ["linear", "conv3"])
@pytest.mark.parametrize("share", [False, True])
def test_gradients_are_those_of_finite_differences(kind, share):
    layer = layer_of(kind).double()
    oft = OFT(layer.weight, Settings(blocks=4, share=share, rescale=True, eps=50.0))
    disturb(oft.parameters())
    names = list(dict(oft.named_parameters()))

    def turned(*values):
        return torch.func.functional_call(oft, dict(zip(names, values, strict=True)), (layer.weight.detach(),))

    assert torch.autograd.gradcheck(turned, tuple(oft.parameters()))


@pytest.mark.parametrize("share", [False, True])
@pytest.mark.parametrize("eps", [1e-3, 0.5, 3.0])
def test_coft_never_leaves_its_ball_and_comes_back_from_its_edge(eps, share):
    torch.manual_seed(0)
    model, goal = nn.Sequential(nn.Linear(16, 24)), nn.Linear(16, 24)
    W0 = model[0].weight.detach().clone()
    parameters = oft_vs_lora.apply(model, "0", blocks=4, eps=eps, share=share)
    oft = oft_vs_lora.adapters(model)["0"]
    x = torch.randn(64, 16)

    def distance() -> float:
        """||R - I||, with the R that the layer computes with."""
        R = torch.block_diag(*oft.R().detach().double().expand(4, -1, -1))
        assert torch.allclose(W0.double() @ R.T, model[0].weight.double(), atol=1e-6)
        return float((R - torch.eye(16)).norm())

    ended = []
    for towards in (goal(x).detach(), nn.functional.linear(x, W0, model[0].bias.detach())):
        optimizer = torch.optim.Adam(parameters, lr=0.1 * eps)
        for _ in range(40):
            optimizer.zero_grad()
            (model(x) - towards).square().mean().backward()
            optimizer.step()
            assert distance() <= eps + 1e-6
        ended.append(distance())
    assert ended[0] > 0.8 * eps, "the constraint was at work"
    assert ended[1] < 0.5 * eps, "and it lets go when the loss wants back"


def test_one_learning_rate_moves_blocks_of_all_sizes_equally():
    found = []
    for blocks in (2, 8, 32):
        model = nn.Sequential(nn.Linear(256, 64))
        parameters = oft_vs_lora.apply(model, "0", blocks=blocks)
        optimizer = torch.optim.Adam(parameters, lr=0.1)
        (model(torch.randn(32, 256, generator=seeded(0)))).square().sum().backward()
        optimizer.step()
        R = oft_vs_lora.adapters(model)["0"].R().detach()
        found.append(float((R[0] - torch.eye(256 // blocks)).norm()))
    assert found == pytest.approx([2 * 2**0.5 * 0.1] * 3, rel=0.02)


def test_half_precision_weights_are_turned_in_single_precision():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(32, 32, bias=False)).bfloat16()
    W0 = model[0].weight.detach().clone()
    (q,) = oft_vs_lora.apply(model, "0")
    assert q.dtype == torch.float32, "what trains must not be in half precision"
    disturb([q])
    oft = oft_vs_lora.adapters(model)["0"]
    with torch.autocast("cpu", torch.bfloat16):
        assert model[0].weight.dtype == torch.bfloat16
        assert orthogonality_error(oft.R()) < 2e-6
        exact = oft(W0.float())
    assert torch.equal(model[0].weight, exact.bfloat16()), "rounded once, at the end"
    model.bfloat16()  # the adapter's numbers too; the map is still computed exactly
    assert orthogonality_error(oft.R()) < 2e-6


# ---- Models ----------------------------------------------------------------------------------------------------------


def test_a_unet_learns_by_its_adapter_alone_and_is_a_plain_one_when_merged(tmp_path):
    unet = tiny_unet()
    own = {k: v.clone() for k, v in unet.state_dict().items()}
    start = answer(unet)
    parameters = oft_vs_lora.apply(unet)
    names = set(oft_vs_lora.adapters(unet))
    assert names == {k[:-7] for k in own if k.endswith(tuple(f".{t}.weight" for t in oft_vs_lora.TARGETS))}
    assert same(answer(unet), start)
    weights = {name: unet.get_submodule(name).weight for name in names}
    assert all(torch.equal(weight, own[f"{name}.weight"]) for name, weight in weights.items()), "R = I exactly"
    assert {id(p) for p in unet.parameters() if p.requires_grad} == {id(p) for p in parameters}
    stored = training.trained_state(unet)
    assert len(stored) == len(names) and sum(v.numel() for v in stored.values()) == sum(p.numel() for p in parameters)

    optimizer = torch.optim.AdamW(parameters, lr=0.05)
    goal = torch.randn(start.shape, generator=seeded(5))

    def loss(model, generator, step):
        x = torch.randn(2, 4, 8, 8, generator=seeded(3))
        return (model(x, 300, STATES.expand(2, -1, -1)).sample - goal).square().mean()

    losses = [p.loss for p in training.train(unet, loss, optimizer, 12, warmup=1)]
    assert losses[-1] < 0.97 * losses[0]
    turned = answer(unet)
    assert not torch.allclose(turned, start, atol=1e-2)

    weights = {name: unet.get_submodule(name).weight.detach() for name in names}
    oft_vs_lora.merge(unet)
    assert all(torch.equal(unet.get_submodule(name).weight, weight) for name, weight in weights.items())
    assert list(unet.state_dict()) == list(own) and all(type(m) is not OFT for m in unet.modules())
    assert all(type(unet.get_submodule(name)) is nn.Linear for name in names)
    assert same(answer(unet), turned), "merged is what it was"
    unet.save_pretrained(tmp_path)
    again = UNet2DConditionModel.from_pretrained(tmp_path).eval()
    assert same(answer(again), turned)
    moved = {k for k, v in again.state_dict().items() if not torch.equal(v, own[k])}
    assert moved == {f"{name}.weight" for name in names}
    drift = max(angle_drift(own[k], again.state_dict()[k]) for k in moved)
    assert drift < 1e-4, "no angle between two neurons of a layer has changed"

    oft_vs_lora.merge(unet, 0)
    assert torch.allclose(answer(unet), start, atol=1e-5)
    oft_vs_lora.unmerge(unet)
    oft_vs_lora.unmerge(unet)
    assert same(answer(unet), turned)
    assert {id(p) for p in unet.parameters() if p.requires_grad} == {id(p) for p in parameters}, "it can train on"
    oft_vs_lora.remove(unet)
    assert list(unet.state_dict()) == list(own)
    assert all(torch.equal(v, own[k]) for k, v in unet.state_dict().items())
    assert not oft_vs_lora.adapters(unet) and same(answer(unet), start)


def test_merging_with_a_strength_is_the_power_of_each_rotation():
    model = nn.Sequential(nn.Linear(12, 20))
    W0 = model[0].weight.detach().clone()
    parameters = oft_vs_lora.apply(model, "0")
    disturb(parameters)
    Q = oft_vs_lora.adapters(model)["0"].Q().detach()
    for t in (0.5, 1.5, -1.0, 0.25):  # straight after one another, each from W0
        oft_vs_lora.merge(model, t)
        assert torch.allclose(model[0].weight, W0 @ torch.block_diag(*power(Q, t)).T, atol=1e-6)
    oft_vs_lora.remove(model)
    assert torch.equal(model[0].weight, W0)


def test_an_average_is_merged_without_touching_the_model_that_trains():
    unet = tiny_unet()
    parameters = oft_vs_lora.apply(unet)
    ema = training.ema_copy(unet)
    disturb(parameters)
    training.ema_update(ema, unet, 0, 0.5)
    turned = answer(unet)
    oft_vs_lora.merge(ema)
    assert not torch.allclose(answer(ema), turned, atol=1e-3)
    assert same(answer(unet), turned)
    oft_vs_lora.unmerge(ema)
    oft_vs_lora.remove(copy.deepcopy(unet))
    assert same(answer(unet), turned)


def test_a_merged_model_that_was_moved_can_be_unmerged():
    model = nn.Sequential(nn.Linear(12, 20))
    disturb(oft_vs_lora.apply(model, "0"))
    oft_vs_lora.merge(model)
    model.double()
    oft_vs_lora.unmerge(model)
    assert model[0].weight.dtype == torch.float64 and not model[0].parametrizations.weight.original.requires_grad


def test_text_encoders_and_convolutions_are_named_by_their_parts():
    torch.manual_seed(0)
    text = CLIPTextModel(
        CLIPTextConfig(hidden_size=16, intermediate_size=32, num_hidden_layers=2, vocab_size=50)
    ).eval()
    ids = torch.tensor([[49, 3, 5, 7]])
    before = text(ids).last_hidden_state
    parameters = oft_vs_lora.apply(text, ("q_proj", "k_proj", "v_proj", "out_proj"))
    assert len(parameters) == 8 and same(text(ids).last_hidden_state, before)
    disturb(parameters)
    after = text(ids).last_hidden_state
    oft_vs_lora.merge(text)
    assert same(text(ids).last_hidden_state, after) and not torch.allclose(after, before, atol=1e-2)

    unet = tiny_unet()
    oft_vs_lora.apply(unet, ["conv1", "conv_out", "attn2.to_k"])
    found = oft_vs_lora.adapters(unet)
    assert "conv_out" in found and any(name.endswith("resnets.0.conv1") for name in found)
    assert all(not name.endswith("attn1.to_k") for name in found)


@pytest.mark.parametrize(
    "settings", [{}, {"blocks": 2, "share": True, "rescale": True}, {"eps": 0.5}], ids=["plain", "shared", "COFT"]
)
def test_a_saved_adapter_comes_back(tmp_path, settings):
    path = tmp_path / "new" / "cat.safetensors"
    unet = tiny_unet()
    parameters = oft_vs_lora.apply(unet, **settings)
    disturb(parameters)
    turned = answer(unet)
    oft_vs_lora.save(unet, path)
    with safe_open(path, "pt") as f:
        assert (
            json.loads(f.metadata()["oft"]) == {"blocks": 4, "eps": None, "share": False, "rescale": False} | settings
        )
    fresh = tiny_unet()
    loaded = oft_vs_lora.load(fresh, path)
    assert same(answer(fresh), turned)
    assert [p.shape for p in loaded] == [p.shape for p in parameters] and all(p.requires_grad for p in loaded)
    oft_vs_lora.merge(fresh, 0.5)
    oft_vs_lora.save(fresh, path)  # merged or not, it is the adapter
    again = tiny_unet()
    oft_vs_lora.load(again, path)
    assert same(answer(again), turned)


def test_what_cannot_be_done_is_said_in_a_sentence(tmp_path):
    unet = tiny_unet()
    own = list(unet.state_dict())
    with pytest.raises(
        ValueError, match="named 'q_proj'; the last parts of their names are conv, .*, to_k, to_out.0, to_q"
    ):
        oft_vs_lora.apply(unet, "q_proj")
    with pytest.raises(ValueError, match="named 'attn1'"):
        oft_vs_lora.apply(unet, ["to_q", "attn1"])
    with pytest.raises(ValueError, match="no layers were named"):
        oft_vs_lora.apply(unet, [])
    with pytest.raises(ValueError, match="blocks=5 cannot share out the 16 inputs of .*to_q; choose among 1, 2, 4, 8"):
        oft_vs_lora.apply(unet, blocks=5)
    with pytest.raises(ValueError, match="blocks=16 cannot share out"):
        oft_vs_lora.apply(unet, blocks=16)
    with pytest.raises(ValueError, match="eps=0 leaves no rotation"):
        oft_vs_lora.apply(unet, eps=0)
    for act in (oft_vs_lora.merge, oft_vs_lora.unmerge, oft_vs_lora.remove):
        with pytest.raises(ValueError, match="the model has no adapter of OFT"):
            act(unet)
    with pytest.raises(ValueError, match="no adapter"):
        oft_vs_lora.save(unet, tmp_path / "none.safetensors")
    assert list(unet.state_dict()) == own and not list(tmp_path.iterdir())
    assert all(p.requires_grad for p in unet.parameters()), "a refusal changes nothing"

    oft_vs_lora.apply(unet)
    oft_vs_lora.save(unet, tmp_path / "unet.safetensors")
    for state in (None, oft_vs_lora.merge):
        if state:
            state(unet)
        with pytest.raises(ValueError, match=r"has an adapter already; remove\(model\)"):
            oft_vs_lora.apply(unet)
    other = nn.Sequential(nn.Linear(12, 20))
    with pytest.raises(ValueError, match=r"unet.safetensors is for another model: this one has no .* down_blocks"):
        oft_vs_lora.load(other, tmp_path / "unet.safetensors")
    wider = UNet2DConditionModel.from_config({**unet.config, "block_out_channels": (32, 32)})
    with pytest.raises(
        ValueError, match=r"unet.safetensors cannot be loaded: for .*q it has \(4, 6\) where .*\(4, 28\)"
    ):
        oft_vs_lora.load(wider, tmp_path / "unet.safetensors")
    assert not oft_vs_lora.adapters(wider)
    save_file({"0.weight": torch.zeros(2)}, tmp_path / "weights.safetensors")
    (tmp_path / "text.safetensors").write_text("no", encoding="utf-8")
    for name in ("weights", "text"):
        with pytest.raises(ValueError, match=f"{name}.safetensors is not an adapter of OFT"):
            oft_vs_lora.load(other, tmp_path / f"{name}.safetensors")
