"""DreamBooth on Replicate: your pictures go there in a zip, a training runs, and pictures of your subject come back.

`companion.photographs` packs the zip, `fields` puts the recipe in a trainer's words, `service` rehearses the requests
and sends them through Replicate's own client, and `command` is the command line. Only sending needs an account and that
client, which the extra `[replicate]` installs. `import replicate` means the client, never this package.

    fields = {"instance_data": Path("me.zip"), "instance_prompt": "a photo of an oscvtr doctor", ...}
    job = Job("owner/trainer:version", "you/model", fields)
    for request in rehearsal(job):
        print(request)  # nothing is sent
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from companion.replicate.fields import BESIDE, FIELDS, TRAINERS, rare_word, translate
from companion.replicate.service import Job, rehearsal

if TYPE_CHECKING:
    from companion.photographs import pack

__all__ = ["BESIDE", "FIELDS", "TRAINERS", "Job", "pack", "rare_word", "rehearsal", "translate"]


def __getattr__(name: str) -> Any:
    if name == "pack":  # it needs Pillow and numpy, which the command's help does not
        from companion.photographs import pack

        return pack
    raise AttributeError(f"module 'companion.replicate' has no attribute {name!r}")
