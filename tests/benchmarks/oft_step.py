"""What a training step of OFT costs beside PEFT's OFT, LoRA, and full finetuning. Run this file to print a table.

    python tests/benchmarks/oft_step.py

All of them train the miniature's U-Net on the same batch, step by step, in an order that is drawn anew in each round,
so that a machine that slows down slows all of them. PEFT's OFT is in its exact mode, with as many blocks.
"""

from __future__ import annotations

import copy
import random
import time
from statistics import median

import torch
from peft import LoraConfig, OFTConfig, get_peft_model
from torch import nn

import companion
from companion import oft_vs_lora

BATCH, ROUNDS, BLOCKS, RANK = 4, 40, 4, 4


def main() -> None:
    pipe = companion.load("tabletop", device="cpu")
    x, states = torch.randn(BATCH, 4, 16, 16), torch.randn(BATCH, 32, pipe.unet.config.cross_attention_dim)
    t, noise = torch.randint(1000, (BATCH,)), torch.randn(BATCH, 4, 16, 16)
    targets = list(oft_vs_lora.TARGETS)
    oft = OFTConfig(r=BLOCKS, oft_block_size=0, target_modules=targets, use_cayley_neumann=False)
    lora = LoraConfig(r=RANK, lora_alpha=RANK, target_modules=targets, init_lora_weights="gaussian")
    models: dict[str, nn.Module] = {name: copy.deepcopy(pipe.unet) for name in ("OFT", "full finetuning")}
    models["PEFT's OFT, exact"], models["LoRA"] = (get_peft_model(copy.deepcopy(pipe.unet), c) for c in (oft, lora))
    models["full finetuning"].requires_grad_(True)
    oft_vs_lora.apply(models["OFT"], targets, BLOCKS)
    optimizers = {
        name: torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)
        for name, model in models.items()
    }

    def step(name: str) -> float:
        begin = time.perf_counter()
        loss = (models[name](x, t, states).sample - noise).square().mean()
        loss.backward()
        optimizers[name].step()
        optimizers[name].zero_grad(set_to_none=True)
        return time.perf_counter() - begin

    for name in models:
        step(name)
    times, rng = {name: [] for name in models}, random.Random(0)
    for _ in range(ROUNDS):
        for name in rng.sample(list(models), len(models)):
            times[name].append(step(name))
    base = "PEFT's OFT, exact"
    for name in sorted(models, key=lambda name: median(times[name])):
        ratio = median(a / b for a, b in zip(times[name], times[base], strict=True))
        trained = sum(p.numel() for p in models[name].parameters() if p.requires_grad)
        print(f"{name:18} {median(times[name]):.3f} s a step, {ratio:.2f} times {base}; {trained:,} numbers train")


if __name__ == "__main__":
    main()
