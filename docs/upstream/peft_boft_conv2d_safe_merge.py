"""PEFT: BOFT's `safe_merge` on a convolution writes infinities into the base layer. Exits with 0 while that is so."""

import sys

import torch
from peft import BOFTConfig, get_peft_model
from torch import nn


def main() -> int:
    torch.manual_seed(0)
    config = BOFTConfig(boft_block_size=4, target_modules=["0"])
    model = get_peft_model(nn.Sequential(nn.Conv2d(4, 8, 3)), config)
    layer = model.base_model.model[0]
    layer.boft_s["default"].data.fill_(float("inf"))  # as an overflow in half precision would leave it
    try:
        layer.merge(safe_merge=True)
    except ValueError as error:
        print(f"refused: {error}")
        return 1
    finite = bool(torch.isfinite(layer.base_layer.weight).all())
    print(f"merged without an error; the base weight is finite: {finite}; merged adapters: {layer.merged_adapters}")
    return 1 if finite else 0


if __name__ == "__main__":
    sys.exit(main())
