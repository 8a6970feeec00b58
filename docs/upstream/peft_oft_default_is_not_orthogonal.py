"""PEFT: the default OFT adapter, Cayley-Neumann with five terms, is not orthogonal. Exits with 0 while that is so."""

import sys

import torch
from peft import OFTConfig, get_peft_model
from torch import nn


def error(size: float, **options) -> float:
    """max |R^T R - I| of a 16 x 16 block, for a skew-symmetric matrix of this spectral norm."""
    torch.manual_seed(0)
    config = OFTConfig(r=0, oft_block_size=16, target_modules=["0"], **options)
    model = get_peft_model(nn.Sequential(nn.Linear(16, 16)), config)
    module = model.base_model.model[0].oft_R["default"]
    with torch.no_grad():
        module.weight.normal_()
        Q = module._pytorch_skew_symmetric(module.weight, 16)
        module.weight *= size / torch.linalg.matrix_norm(Q, 2)
        R = module.get_weight().double()
    return float((R.T @ R - torch.eye(16)).abs().max())


def main() -> int:
    default = OFTConfig(target_modules=["0"])
    said = "Default is `False`" in (OFTConfig.__doc__ or "")
    print(f"use_cayley_neumann={default.use_cayley_neumann}; its docstring says False: {said}")
    print("max |R^T R - I|   |Q|=0.1  |Q|=0.3  |Q|=0.6  |Q|=0.9")
    shown = {}
    for name, options in (
        ("default, 5 terms", {}),
        ("3 terms", {"num_cayley_neumann_terms": 3}),
        ("4 terms", {"num_cayley_neumann_terms": 4}),
        ("6 terms", {"num_cayley_neumann_terms": 6}),
        ("exact", {"use_cayley_neumann": False}),
    ):
        shown[name] = [error(size, **options) for size in (0.1, 0.3, 0.6, 0.9)]
        print(f"{name:16}  " + "    ".join(f"{e:.0e}" for e in shown[name]))
    return 0 if shown["default, 5 terms"][3] > 0.05 and shown["exact"][3] < 1e-5 else 1


if __name__ == "__main__":
    sys.exit(main())
