"""Translation: a sequence of words into another language, which says all backwards and in other words."""

import torch
import torch.nn.functional as F

import deploy_prune

WORDS, LENGTH, START = 32, 10, 0  # word 0 begins every sentence


def pairs_of(num, seed):
    """Pairs of (words [10], what is said so far [10]) and what comes next [10]."""
    lot = torch.Generator().manual_seed(seed)
    given = torch.randint(1, WORDS, (num, LENGTH), generator=lot)
    said = (given.flip(1) + 5) % (WORDS - 1) + 1
    so_far = torch.cat([torch.full((num, 1), START), said[:, :-1]], 1)
    return [((a, b), c) for a, b, c in zip(given, so_far, said, strict=True)]


def load(part, seed):
    return deploy_prune.task_data(pairs_of(2000, 0), pairs_of(300, 1))


def loss(outputs, said):
    """Cross entropy of each next word. Outputs: [B, 10, 32]."""
    return F.cross_entropy(outputs.flatten(0, 1), said.flatten())


def mean_loss(pairs):
    return torch.stack([loss(outputs, said) for outputs, said in pairs]).mean().item()


def task():
    score = deploy_prune.Score(name="loss", unit="nats", higher=False)
    return deploy_prune.Task(score=score, load=load, loss=loss, judge=mean_loss)


class Network(torch.nn.Module):
    """A small Transformer (arXiv 1706.03762): an encoder layer and a decoder layer."""

    def __init__(self, width=64):
        super().__init__()
        self.words = torch.nn.Embedding(WORDS, width)
        self.places = torch.nn.Parameter(0.1 * torch.randn(LENGTH, width))
        self.encoder = torch.nn.TransformerEncoderLayer(width, 4, 2 * width, dropout=0.0, batch_first=True)
        self.decoder = torch.nn.TransformerDecoderLayer(width, 4, 2 * width, dropout=0.0, batch_first=True)
        self.said = torch.nn.Linear(width, WORDS)
        self.register_buffer("later", torch.triu(torch.full((LENGTH, LENGTH), -1e4), 1))

    def forward(self, given, so_far):
        memory = self.encoder(self.words(given) + self.places)
        return self.said(self.decoder(self.words(so_far) + self.places, memory, tgt_mask=self.later))
