"""PEFT: COFT's default `eps` freezes the layer, since a factor of the official code is missing. Exits with 0 while
that is so.
"""

import sys

import torch
from peft import OFTConfig, get_peft_model
from torch import nn


def trained(coft: bool, eps: float = 6e-5) -> tuple[float, float]:
    """||R - I||, and the loss as a share of that at the start, after 60 steps towards a layer turned by 0.6."""
    torch.manual_seed(0)
    layer = nn.Linear(320, 320, bias=False).requires_grad_(False)
    Q = torch.block_diag(*torch.randn(4, 80, 80))
    Q = Q - Q.T
    turn = torch.matrix_exp(0.6 * Q / Q.norm())
    x = torch.randn(256, 320)
    goal = x @ turn @ layer.weight.T
    start = float((layer(x) - goal).square().mean())
    config = OFTConfig(r=4, oft_block_size=0, target_modules=["0"], use_cayley_neumann=False, coft=coft, eps=eps)
    model = get_peft_model(nn.Sequential(layer), config)
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=3e-4)
    for _ in range(60):
        optimizer.zero_grad()
        loss = (model(x) - goal).square().mean()
        loss.backward()
        optimizer.step()
    R = model.base_model.model[0].oft_R["default"].get_weight().detach()
    return float((R - torch.eye(320)).norm()), float(loss.detach()) / start


def main() -> int:
    found = {}
    for name, options in (
        ("default eps 6e-5", {"coft": True}),
        ("eps 6e-5 * 80^2", {"coft": True, "eps": 6e-5 * 80**2}),
        ("no constraint", {"coft": False}),
    ):
        found[name] = trained(**options)
        print(f"{name:16}: ||R - I|| = {found[name][0]:.1e}, loss = {100 * found[name][1]:.0f} % of that at the start")
    (moved, left), (_, wider) = found["default eps 6e-5"], found["eps 6e-5 * 80^2"]
    return 0 if moved < 2e-4 and left > 0.99 and wider < 0.1 else 1


if __name__ == "__main__":
    sys.exit(main())
