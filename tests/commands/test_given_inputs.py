"""`--input`: pictures, sound, tokens, several; and examples of them."""

import pytest
import torch
from input_kinds import tokens_network

from deploy_prune.commands.given_inputs import as_given, parse_inputs
from deploy_prune.errors import ModelError
from deploy_prune.export.examples import drawn, zeros
from deploy_prune.types import Input


@pytest.mark.parametrize(
    ("text", "shape", "kind"),
    [
        ("3,224,160", (1, 3, 224, 160), "float32"),
        ("3x224x160", (1, 3, 224, 160), "float32"),
        (" 3, 224, 160 ", (1, 3, 224, 160), "float32"),
        ("16", (1, 16), "float32"),
        ("int64:77", (1, 77), "int64"),
        ("bool:12x3", (1, 12, 3), "bool"),
    ],
)
def test_one_input(text, shape, kind):
    assert parse_inputs([text]) == (Input(shape=shape, type=kind),)


def test_several_in_order_and_back_in_words():
    found = parse_inputs(["3x8x6", "int64:77"])
    assert [as_given(x) for x in found] == ["3x8x6", "int64:77"]
    assert [(x.shape, x.dtype) for x in zeros(found)] == [((1, 3, 8, 6), torch.float32), ((1, 77), torch.int64)]


@pytest.mark.parametrize("text", ["", "x", "3,", "3,many", "0,1", "-3,4", "3x", "1.5", "99999x99999x99999", "int64:"])
def test_what_is_no_size(text):
    with pytest.raises(ModelError, match="is not the size of one example: write channels, height and width"):
        parse_inputs([text])


def test_an_unknown_type_has_a_hint():
    with pytest.raises(ModelError, match="no type 'int46'; known: float32, int64, int32, bool. Perhaps .*'int64'"):
        parse_inputs(["int46:77"])


def test_drawn_tokens_are_in_the_shortest_table():
    torch.manual_seed(0)
    words, scale = drawn(parse_inputs(["int64:100", "2"]), tokens_network(), 4)
    assert words.shape == (4, 100)
    assert (words.dtype, int(words.min()), int(words.max())) == (torch.int64, 0, 49)
    assert scale.std() > 0.3
    (bits,) = drawn(parse_inputs(["bool:50"]), tokens_network(), 4)
    assert (bits.dtype, set(bits.flatten().tolist())) == (torch.bool, {True, False})
