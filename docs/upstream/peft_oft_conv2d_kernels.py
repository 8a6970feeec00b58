"""PEFT: an untrained OFT adapter changes a convolution with a kernel above 1. Exits with 0 while that is so."""

import copy
import sys

import torch
from peft import OFTConfig, get_peft_model
from torch import nn


def differences(kernel: int) -> tuple[float, float]:
    """Relative changes of the output: by the untrained adapter, and of that by merging it."""
    torch.manual_seed(0)
    base = nn.Sequential(nn.Conv2d(4, 8, kernel, padding=kernel // 2))
    x = torch.randn(2, 4, 10, 10)
    config = OFTConfig(r=2, oft_block_size=0, target_modules=["0"], use_cayley_neumann=False)
    model = get_peft_model(copy.deepcopy(base), config)
    with torch.no_grad():
        before, after = base(x), model(x)
        merged = model.merge_and_unload()(x)
    scale = before.norm()
    return float((after - before).norm() / scale), float((merged - after).norm() / scale)


def main() -> int:
    found = {kernel: differences(kernel) for kernel in (1, 3)}
    for kernel, (by_adapter, by_merging) in found.items():
        print(
            f"{kernel}x{kernel}: an identity adapter changes the output by {100 * by_adapter:.0f} %, "
            f"and merging changes it by {100 * by_merging:.0f} %"
        )
    return 0 if found[1][0] < 1e-5 and min(found[3]) > 0.5 else 1


if __name__ == "__main__":
    sys.exit(main())
