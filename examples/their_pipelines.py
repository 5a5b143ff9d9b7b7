"""Run folders that `twinvit convert` wrote in the libraries that they were written for.

    python examples/their_pipelines.py RUN_OR_WEIGHTS HUGGING_FACE_FOLDER TIMM_FOLDER PICTURES

Each library prepares the images by its own code and names the likeliest class, as `twinvit
predict` does. The exit status is 1 where they differ.
"""

import sys
from pathlib import Path

import torch
from PIL import Image

import twinvit
from twinvit.convert.libraries import without_torchvision_operators


def by_transformers(folder: str, files: list[str]) -> list[str]:
    from transformers import pipeline

    return [top[0]["label"] for top in pipeline("image-classification", folder)(files, top_k=1)]


def by_timm(folder: str, files: list[str]) -> list[str]:
    import timm

    model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
    images = torch.stack([transform(Image.open(file).convert("RGB")) for file in files])
    with torch.no_grad():
        best = model(images).argmax(1)
    return [model.pretrained_cfg["label_names"][i] for i in best]


def main() -> int:
    if len(sys.argv) != 5:
        sys.exit(__doc__)
    weights, hugging_face, for_timm, pictures = sys.argv[1:]
    files = sorted(str(path) for path in Path(pictures).rglob("*") if path.is_file())
    if not files:
        sys.exit(f"no images in {pictures}")
    without_torchvision_operators()  # not needed where torchvision is of torch's own build
    classes = {
        "twinvit": [top[0]["class"] for top in twinvit.load(weights).predict(files, top_k=1)],
        "transformers": by_transformers(hugging_face, files),
        "timm": by_timm(for_timm, files),
    }
    same = 0
    for file, *names in zip(files, *classes.values()):
        same += len(set(names)) == 1
        print(f"{file}: " + "  ".join(f"{name} ({by})" for name, by in zip(names, classes)))
    print(f"the same class for {same} of {len(files)} images")
    return 0 if same == len(files) else 1


if __name__ == "__main__":
    raise SystemExit(main())
