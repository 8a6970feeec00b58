"""diffusers with PEFT: an OFT adapter is saved and cannot be loaded again. Exits with 0 while that is so."""

import sys
import tempfile

from diffusers import UNet2DConditionModel
from peft import LoraConfig, OFTConfig


def small() -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(16, 32),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=32,
        attention_head_dim=4,
        norm_num_groups=4,
    )


def tried(config) -> str:
    unet = small()
    unet.add_adapter(config, adapter_name="one")
    with tempfile.TemporaryDirectory() as folder:
        unet.save_lora_adapter(folder, adapter_name="one", weight_name="adapter.safetensors")
        try:
            small().load_lora_adapter(folder, prefix=None, weight_name="adapter.safetensors", local_files_only=True)
        except Exception as error:
            return f"saved; loading: {type(error).__name__}: {str(error).splitlines()[0]}"
    return "saved; loading works"


def main() -> int:
    options = {"target_modules": ["to_q"]}
    configs = {"LoRA": LoraConfig(r=2, **options), "OFT": OFTConfig(r=4, oft_block_size=0, **options)}
    found = {name: tried(config) for name, config in configs.items()}
    for name, said in found.items():
        print(f"{name}: {said}")
    return 0 if found["LoRA"] == "saved; loading works" != found["OFT"] else 1


if __name__ == "__main__":
    sys.exit(main())
