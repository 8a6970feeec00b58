"""diffusers: `save_pretrained` of a U-Net with an adapter writes a folder that cannot be loaded as it was. Exits with 0
while that is so.
"""

import logging
import sys
import tempfile

import torch
from diffusers import UNet2DConditionModel
from diffusers.utils import logging as diffusers_logging
from peft import LoraConfig


def main() -> int:
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(16, 32),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=32,
        attention_head_dim=4,
        norm_num_groups=4,
    ).eval()
    name = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q.weight"
    own = unet.state_dict()[name].clone()
    unet.add_adapter(LoraConfig(r=2, target_modules=["to_q"]))  # untrained: it changes nothing
    level = diffusers_logging.get_verbosity()
    diffusers_logging.set_verbosity(logging.CRITICAL)
    lost = 0
    with tempfile.TemporaryDirectory() as folder:
        unet.save_pretrained(folder)
        for low_cpu_mem_usage in (True, False):
            again = UNet2DConditionModel.from_pretrained(folder, low_cpu_mem_usage=low_cpu_mem_usage)
            loaded = again.state_dict()[name]
            same = not loaded.is_meta and torch.equal(loaded, own)
            lost += not same
            print(
                f"from_pretrained with low_cpu_mem_usage={low_cpu_mem_usage}: no error; "
                f"to_q is on {loaded.device}, and has the weights that were saved: {same}"
            )
    diffusers_logging.set_verbosity(level)
    return 0 if lost == 2 else 1


if __name__ == "__main__":
    sys.exit(main())
