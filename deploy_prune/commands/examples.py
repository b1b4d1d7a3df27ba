"""Examples of every command, which its ``--help`` ends with."""

from __future__ import annotations

from typing import Final

EXAMPLES: Final[dict[str, tuple[str, ...]]] = {
    "recipe": (
        "deploy-prune recipe quickstart",
        "deploy-prune recipe mobilenet --set budgets=[50%] --set search.method=uniform --out other-runs",
        "deploy-prune recipe my-recipe.yaml --fresh",
        "deploy-prune recipe my-recipe.yaml --set processes=auto",
        "deploy-prune recipe rack-of-phones.yaml --jobs 4",
        "deploy-prune recipe a.yaml b.yaml c.yaml --jobs 2",
        "deploy-prune recipe mobilenet --set search.method=[dap,gate] --set seed=[0,1] --devices cuda:0,cuda:1",
    ),
    "init": (
        "deploy-prune init photos",
        "deploy-prune init photos --model timm:resnet18 --weights mine.safetensors --target pixel-8 --yes",
        "deploy-prune init VOCdevkit --task detection --budget '4 ms' --out detector.yaml",
    ),
    "check": (
        "deploy-prune check mobilenet --set budgets=[20%]",
        "deploy-prune check my-recipe.yaml --json groups.json",
    ),
    "bench": (
        "deploy-prune bench runs/mobilenet --runs 1000 --json again.json",
        "deploy-prune bench runs/mobilenet --device ssh://pi@raspberrypi.local",
        "deploy-prune bench runs/mobilenet --device ssh://pi@10.0.0.7:2222/home/pi/env/bin/python3",
    ),
    "compare": (
        "deploy-prune compare runs/mobilenet-gate runs/mobilenet-dap",
        "deploy-prune compare runs/* --out methods.html --json methods.json",
    ),
    "export": (
        "deploy-prune export runs/mobilenet --target host",
        "deploy-prune export runs/mobilenet --target host --budget 50% --out handover/mobilenet",
        "deploy-prune export runs/mobilenet/host/50% --target pixel-6 --out slim.tflite",
        "deploy-prune export architecture.json --target host --input 3x384x640 --out wide.onnx",
        "deploy-prune export trained-on --target pixel-8 --bundle",
    ),
    "verify": ("deploy-prune verify bundles/mobilenet-pixel-8-50pct.zip",),
    "transfer": (
        "deploy-prune transfer architecture.json --data photos --shots 10 --out slim-photos",
        "deploy-prune transfer runs/mobilenet/host/50% --data photos --set data.augment=crop_flip --out slim",
        "deploy-prune transfer runs/mobilenet/host/50% --episodes 5 --out how-sure",
        "deploy-prune export slim-photos --target pixel-6 --out slim-photos.tflite",
    ),
    "show": (
        "deploy-prune show architecture.json",
        "deploy-prune show runs/mobilenet/host/50% --target pixel-8",
        "deploy-prune show my/architecture.json --trust --json",
        "deploy-prune show architecture.json --input 3x384x640 --target jetson-nano",
    ),
    "predict": (
        "deploy-prune predict torchvision:resnet18 --target jetson-nano --input 3x224x224",
        "deploy-prune predict torchvision:ssdlite320_mobilenet_v3_large --target pixel-8 --input 3x320x320",
        "deploy-prune predict my_networks:translator --trust --target pixel-8 --input int64:32 --input int64:40",
        "deploy-prune predict runs/mobilenet/host/50% --target pixel-8",
    ),
    "profile": (
        "deploy-prune profile torchvision:mobilenet_v2 --target host --input 3x224x224",
        "deploy-prune profile resnet20 --target ./my-pi.yaml --input 3x32x32 --classes 10 --out table.json",
        "deploy-prune profile unet --target host --input 3x96x160 --classes 11",
        "deploy-prune profile runs/mobilenet/host/50% --target host --device ssh://pi@raspberrypi.local --json",
    ),
    "report": ("deploy-prune report runs/mobilenet",),
    "targets": (
        "deploy-prune targets",
        "deploy-prune targets --json",
        "deploy-prune targets new my-pi --ssh pi@raspberrypi.local",
    ),
    "targets new": (
        "deploy-prune targets new my-pi --ssh pi@raspberrypi.local",
        "deploy-prune targets new my-phone --adb R58M12ABCDE --program ./benchmark_model",
        "deploy-prune recipe mobilenet --set targets=[./my-pi.yaml]",
    ),
    "doctor": ("deploy-prune doctor", "deploy-prune doctor --try"),
    "schema": ("deploy-prune schema --out recipe.schema.json",),
    "cache": (
        "deploy-prune cache",
        "deploy-prune cache --clear latency",
    ),
}
"""Command -> lines for a shell, from the plainest to the most special."""


def examples(command: str) -> str:
    """The command's examples, a line each. The mark keeps click from joining the lines."""
    return "\n".join(["\b", "Examples:", *(f"  {line}" for line in EXAMPLES[command])])
