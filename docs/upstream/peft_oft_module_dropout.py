"""PEFT: `module_dropout` of OFT does nothing. Exits with 0 while that is so."""

import sys

import torch
from peft import BOFTConfig, OFTConfig, get_peft_model
from torch import nn


def outputs(config) -> int:
    """How many different answers twenty forward passes in training mode give."""
    torch.manual_seed(0)
    model = get_peft_model(nn.Sequential(nn.Linear(32, 32)), config).train()
    x = torch.randn(1, 32)
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p.normal_(std=0.5)
        return len({tuple(model(x)[0].tolist()) for _ in range(20)})


def main() -> int:
    options = {"target_modules": ["0"]}
    oft = outputs(OFTConfig(r=8, oft_block_size=0, module_dropout=0.5, **options))
    boft = outputs(BOFTConfig(boft_block_size=4, boft_dropout=0.5, **options))
    print(f"20 forward passes in training mode: OFT with module_dropout=0.5 gives {oft} different answer(s)")
    print(f"for comparison, BOFT with boft_dropout=0.5 gives {boft}")
    return 0 if oft == 1 and boft > 1 else 1


if __name__ == "__main__":
    sys.exit(main())
