"""diffusers with PEFT: `set_adapters` with weights fails for OFT, BOFT and HRA. Exits with 0 while that is so."""

import sys

from diffusers import UNet2DConditionModel
from peft import BOFTConfig, HRAConfig, LoraConfig, OFTConfig


def tried(config) -> str:
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(16, 32),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=32,
        attention_head_dim=4,
        norm_num_groups=4,
    )
    unet.add_adapter(config, adapter_name="one")
    try:
        unet.set_adapters(["one"], [0.5])
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "works"


def main() -> int:
    options = {"target_modules": ["to_q"]}
    configs = {
        "LoRA": LoraConfig(r=2, **options),
        "OFT": OFTConfig(r=4, oft_block_size=0, **options),
        "BOFT": BOFTConfig(boft_block_size=4, **options),
        "HRA": HRAConfig(r=2, **options),
    }
    found = {name: tried(config) for name, config in configs.items()}
    for name, said in found.items():
        print(f"set_adapters(['one'], [0.5]) with {name}: {said}")
    return 0 if found.pop("LoRA") == "works" and "works" not in found.values() else 1


if __name__ == "__main__":
    sys.exit(main())
