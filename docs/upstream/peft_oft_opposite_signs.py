"""PEFT: OFT's exact and Cayley-Neumann maps turn in opposite directions. Exits with 0 while that is so."""

import sys

import torch
from peft import OFTConfig, get_peft_model
from torch import nn


def rotation(exact: bool) -> torch.Tensor:
    config = OFTConfig(r=0, oft_block_size=8, target_modules=["0"], use_cayley_neumann=not exact)
    model = get_peft_model(nn.Sequential(nn.Linear(8, 8)), config)
    module = model.base_model.model[0].oft_R["default"]
    with torch.no_grad():
        module.weight.copy_(0.02 * torch.randn(module.weight.shape, generator=torch.Generator().manual_seed(0)))
        return module.get_weight()


def main() -> int:
    neumann, exact = rotation(exact=False), rotation(exact=True)
    same, opposite = float((neumann - exact).abs().max()), float((neumann - exact.T).abs().max())
    print(f"the same weights in both: max |R_neumann - R_exact| = {same:.3f}")
    print(f"against the inverse rotation: max |R_neumann - R_exact^T| = {opposite:.0e}")
    return 0 if opposite < 1e-4 < 0.01 < same else 1


if __name__ == "__main__":
    sys.exit(main())
