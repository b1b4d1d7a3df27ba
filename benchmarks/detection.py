"""A detector of blood cells cut to shares of its measured latency: learned masks against baselines, mAP.

    python benchmarks/detection.py --data ROOT [--methods ...] [--points 75%,50%,35%] [--seeds 3] [--steps 360]
                                   [--search-steps 60] [--train-steps 2000] [--batch 8] [--image-size 96 128]

ROOT (or DEPLOY_PRUNE_DATA) holds BCCD in bccd/, as published (VOC's layout): 205 training and 72 test pictures of
blood, with boxes around platelets, red and white cells. The detector is an SSDlite on MobileNet, at a size
that two cores can train: 96 x 128 pixels, from random weights. A point is the share of the dense latency that the
exported network is measured to have on this machine. All methods have the same number of training steps in all, from
the same teacher: what a search takes is taken from its retraining. The row "dense" is the dense network trained on for
as many steps. tp_group_norm is torch-pruning's own pruner. Settings were chosen on BCCD's validation part, with
--validate. Rows that --rows has under the same conditions are not made again.
"""

from __future__ import annotations

from _tasks import Kind, parse, run

from deploy_prune.networks.libraries import import_torchvision
from deploy_prune.recipe.data import BoxesPart
from deploy_prune.recipe.parts import TrainPart
from deploy_prune.recipe.tasks import DetectionRetrainPart, DetectionSearchPart
from deploy_prune.tasks.detection import DETECTION


def main() -> None:
    """Make every row, then the table."""
    arguments = parse(__doc__, "bccd", (96, 128), steps=360, search_steps=60, train_steps=2000, batch=8)
    if arguments.data is None:
        print("skipped: say where BCCD is, with --data ROOT or DEPLOY_PRUNE_DATA")
        return
    import_torchvision()
    from _mobilenet import ssdlite

    data = BoxesPart(
        source="voc", root=str(arguments.data / "bccd"), image_size=arguments.image_size, fit="stretch", broken="skip",
        augment="flip_crop",
    )  # fmt: skip
    kind = Kind(
        name="detection",
        task=DETECTION,
        network=lambda num_classes: ssdlite(num_classes, (arguments.image_size[0], arguments.image_size[1])),
        data=data,
        train=TrainPart(steps=arguments.train_steps, batch_size=arguments.batch, lr=0.05),
        search=DetectionSearchPart(batch_size=arguments.batch),
        retrain=DetectionRetrainPart(),
        validation={
            "JPEGImages": "JPEGImages",
            "Annotations": "Annotations",
            "ImageSets/Main/train.txt": "ImageSets/Main/train.txt",
            "ImageSets/Main/test.txt": "ImageSets/Main/val.txt",
        },  # fmt: skip
    )
    run(kind, arguments, network="SSDlite, MobileNet")


if __name__ == "__main__":
    main()
