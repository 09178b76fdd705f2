"""Whether processors have time left."""

from torpor.vmhost.processors import SPAN_S, Processors


def test_it_is_what_was_left_over_lately() -> None:
    now_s, idle_s = [0.0], [0.0]
    one = Processors(lambda: idle_s[0], lambda: now_s[0])
    assert one.have_time()
    now_s[0] = 2 * SPAN_S
    assert not one.have_time()
    idle_s[0] = 1.0
    assert not one.have_time(), "not looked at so soon again"
    now_s[0] = 4 * SPAN_S
    assert one.have_time()


def test_the_kernels_count_grows() -> None:
    one = Processors()
    first = one._idle_s()
    assert 0 < first <= one._idle_s()
