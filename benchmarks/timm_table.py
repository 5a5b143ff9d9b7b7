"""Write what timm's names of plain ViTs stand for, as data that conversion reads without timm.

    python benchmarks/timm_table.py

A row is a name of `timm.create_model`: the fields of ModelConfig that differ from the defaults,
`spelling`, how its tensors' names differ from the canonical ones, `mlp_factor`, by which
`mlp_ratio` times the width is above the MLP's width, and `pretrained`, the preparation of images
of its first tag.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from timm_fields import fields_of

from shared_vit.errors import UserError
from shared_vit.weights.formats.timm_names import spelling_of
from twinvit.convert.libraries import without_torchvision_operators

FILE = Path(__file__).parent.parent / "shared_vit/weights/formats/timm_architectures.json"
MODULES = ("vision_transformer", "deit", "eva", "beit", "naflexvit")
# Tests of timm's own, with tags, stay; what is no plain ViT is left out by `fields_of`.
PREPARATION = ("mean", "std", "crop_pct", "crop_mode", "interpolation")
USUAL = dict(
    image_size=224, image_width=0, patch_size=16, width=768, depth=12, num_heads=12, mlp_dim=3072,
    num_classes=1000, class_token=True, pool="token", pool_class_token=False,
    norm_after_pool=False, pos_embed="learned", gelu="erf", norm_eps=1e-6,
)  # fmt: skip


def row(name: str) -> dict[str, Any]:
    """One architecture's. Raises UserError for one that is no plain ViT."""
    import timm

    with torch.device("meta"):
        model = timm.create_model(name)
        fields = fields_of(model)
        small: dict[str, Any] = dict(embed_dim=64, depth=1, num_heads=1, mlp_ratio=4.0)
        if getattr(model.blocks[0].attn, "num_kv_heads", None):
            small["num_kv_heads"] = (1,)
        wide = timm.create_model(name, **small).blocks[0].mlp.fc2.in_features
    usual = USUAL | {f: v for f, v in later().items()}
    found = {f: v for f, v in fields.items() if v != usual[f]}
    shown = {key: getattr(model, "pretrained_cfg", {}).get(key) for key in PREPARATION}
    about = {"mlp_factor": 256 / wide, "pretrained": {k: v for k, v in shown.items() if v}}
    return found | about | {"spelling": sorted(spelling_of(model.state_dict()))}


def later() -> dict[str, Any]:
    """The fields that younger models have, at the values of the first ViTs."""
    from shared_vit.spec.config import ModelConfig
    from shared_vit.spec.settings import settings_of

    return {name: about.historical for name, about in settings_of(ModelConfig).items()}


def main() -> None:
    without_torchvision_operators()
    import timm

    rows, left_out = {}, {}
    known = [n for module in MODULES for n in timm.list_models(module=module)]
    published = set(timm.list_models(pretrained=True))
    for name in sorted(known, key=lambda n: (n.startswith("test_"), n not in published, n)):
        try:
            rows[name] = row(name)
        except (UserError, AttributeError, TypeError) as error:
            left_out[name] = str(error)
    text = ",\n".join(f"{json.dumps(n)}: {json.dumps(r, sort_keys=True)}" for n, r in rows.items())
    FILE.write_text("{\n" + text + "\n}\n")
    print(f"{len(rows)} architectures of timm {timm.__version__}, {FILE.stat().st_size} bytes")
    for name, why in left_out.items():
        print("left out:", name, " ".join(why.split())[:120])


if __name__ == "__main__":
    main()
