"""A segmenter of road scenes cut to shares of its measured latency: learned masks against baselines, mIoU.

    python benchmarks/segmentation.py --data ROOT [--methods ...] [--points 75%,50%,35%] [--seeds 3] [--steps 360]
                                      [--search-steps 60] [--train-steps 2000] [--batch 8] [--image-size 96 128]

ROOT (or DEPLOY_PRUNE_DATA) holds CamVid in camvid/, with the folders train/images, train/masks, test/images and
test/masks: 367 training and 233 test pictures of 11 classes. The segmenter is an LRASPP on the detector's MobileNet,
from random weights. All else is as in detection.py.
"""

from __future__ import annotations

from _tasks import Kind, parse, run

from deploy_prune.networks.libraries import import_torchvision
from deploy_prune.recipe.data import MasksPart
from deploy_prune.recipe.parts import TrainPart
from deploy_prune.recipe.tasks import SegmentationSearchPart
from deploy_prune.tasks.segmentation import SEGMENTATION


def main() -> None:
    """Make every row, then the table."""
    arguments = parse(__doc__, "camvid", (96, 128), steps=360, search_steps=60, train_steps=2000, batch=8)
    if arguments.data is None:
        print("skipped: say where CamVid is, with --data ROOT or DEPLOY_PRUNE_DATA")
        return
    import_torchvision()
    from _mobilenet import lraspp

    data = MasksPart(
        source="folders", root=str(arguments.data / "camvid"), image_size=arguments.image_size, fit="stretch", void=11,
        augment="flip_crop",
    )  # fmt: skip
    kind = Kind(
        name="segmentation",
        task=SEGMENTATION,
        network=lraspp,
        data=data,
        train=TrainPart(steps=arguments.train_steps, batch_size=arguments.batch, lr=0.1),
        search=SegmentationSearchPart(batch_size=arguments.batch),
        validation={"train": "train", "test": "val"},
    )
    run(kind, arguments, network="LRASPP, MobileNet")


if __name__ == "__main__":
    main()
