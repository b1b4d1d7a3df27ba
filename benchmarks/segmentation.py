"""A segmenter of road scenes cut to shares of its measured latency: learned masks against baselines, mIoU.

    python benchmarks/segmentation.py --data ROOT [--methods ...] [--points 75%,50%,35%] [--seeds 3] [--steps 160]
                                      [--search-steps 60] [--train-steps 2000] [--batch 8] [--image-size 72 96]

ROOT (or DEPLOY_PRUNE_DATA) holds CamVid in camvid/, with the folders train/images, train/masks, test/images and
test/masks: 367 training and 233 test pictures of 11 classes. The segmenter is the package's small U-Net from random
weights. All else is as in detection.py.
"""

from __future__ import annotations

from _tasks import Kind, parse, run

from deploy_prune.networks.unet import UNet
from deploy_prune.recipe.data import MasksPart
from deploy_prune.recipe.parts import TrainPart
from deploy_prune.recipe.tasks import SegmentationSearchPart
from deploy_prune.tasks.segmentation import SEGMENTATION


def main() -> None:
    """Make every row, then the table."""
    arguments = parse(__doc__, "camvid", (72, 96), steps=160, search_steps=60, train_steps=2000, batch=8)
    if arguments.data is None:
        print("skipped: say where CamVid is, with --data ROOT or DEPLOY_PRUNE_DATA")
        return
    data = MasksPart(
        source="folders", root=str(arguments.data / "camvid"), image_size=arguments.image_size, fit="stretch", void=11,
        augment="flip_crop",
    )  # fmt: skip
    kind = Kind(
        name="segmentation",
        task=SEGMENTATION,
        network=UNet,
        data=data,
        train=TrainPart(steps=arguments.train_steps, batch_size=arguments.batch, lr=0.2),
        search=SegmentationSearchPart(batch_size=arguments.batch),
    )
    run(kind, arguments, network="U-Net")


if __name__ == "__main__":
    main()
