"""Train a run's slim network on in a loop of your own, keep it, and write its artifact again.

    deploy-prune recipe super_resolution.yaml
    python train_on.py runs/super_resolution/host/50% sharper

The folder `sharper` is then what the run's folder is: `deploy_prune.load` takes it, and so do `deploy-prune show` and
`export`. The network's layers are as wide as they were, so it is as fast as the run's table says.
"""

import argparse
from pathlib import Path

import super_resolution as task
import torch

import deploy_prune


def batch_of(pairs):
    return tuple(torch.stack(pictures) for pictures in zip(*pairs, strict=True))


def score(network, data):
    return task.peak_signal_to_noise([(network.eval()(data[0]), data[1])])


def train(network, data, steps, lr=1e-4):
    optimizer = torch.optim.Adam(network.parameters(), lr)
    network.train()
    for _ in range(steps):
        chosen = torch.randint(len(data[0]), (16,))
        loss = task.loss(network(data[0][chosen]), data[1][chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def main(place, out, steps=300):
    part = task.load(None, 0)
    to_train_on, to_judge_by = (batch_of(one.dataset) for one in (part.target_train, part.target_test))
    network = deploy_prune.load(place, trust=True)  # the network is this folder's code: super_resolution.Network
    before = score(network, to_judge_by)
    train(network, to_train_on, steps)
    print(f"{before:.2f} dB, trained on for {steps} steps {score(network, to_judge_by):.2f} dB")
    deploy_prune.save(network, out, like=place)
    small = to_judge_by[0]
    artifact = deploy_prune.export_network(network, small[:1], path=out.with_suffix(".onnx"), calibration=small)
    print(f"{artifact.path}: {artifact.size_bytes / 1e3:.0f} kB; it computes what the network computes")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Train a run's slim network on.")
    parser.add_argument("place", type=Path, help="a run's TARGET/BUDGET folder")
    parser.add_argument("out", type=Path, help="the folder to write")
    parser.add_argument("--steps", type=int, default=300)
    main(**vars(parser.parse_args()))
