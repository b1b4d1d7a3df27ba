from hypothesis import given
from hypothesis import strategies as st

from deploy_prune.report.names import shortened

NAMES = st.lists(st.text(st.sampled_from("ab."), min_size=1, max_size=30), unique=True, max_size=12)


@given(NAMES, st.integers(3, 12))
def test_two_names_are_never_shortened_to_the_same(names, width):
    found = shortened(names, width)
    assert list(found) == names
    assert len(set(found.values())) == len(names)
    for name, short in found.items():
        head, _, tail = short.partition("…")
        assert short == name or (len(short) == width and name.startswith(head) and name.endswith(tail))


def test_the_middle_is_left_out_and_what_would_look_alike_stays_whole():
    found = shortened(["features.12.conv.0.0", "features.13.conv.0.0", "stages.2.blocks.7.mixer.norm", "x"], 12)
    assert found["stages.2.blocks.7.mixer.norm"] == "stag….mixer.norm"[:4] + "…er.norm"
    assert found["features.12.conv.0.0"] == "features.12.conv.0.0", "as feat…nv.0.0 would be both"
    assert found["x"] == "x"
