import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lillama.algebra.moments import PANEL, Moment


@given(st.lists(st.integers(0, 9), min_size=1, max_size=5), st.integers(0, 1000))
@settings(deadline=None, max_examples=30)
def test_a_streamed_moment_is_the_moment_of_everything(sizes, seed):
    generator = torch.Generator().manual_seed(seed)
    batches = [torch.randn(1, size, 6, generator=generator) for size in sizes]
    moment = Moment(6)
    for batch in batches:
        moment.add(batch)
    rows = torch.cat(batches, 1)[0].double()
    expected = rows.T @ rows / max(len(rows), 1)
    torch.testing.assert_close(moment.value, expected, atol=1e-5, rtol=1e-5)
    assert moment.count == len(rows)


def test_one_that_is_wider_than_what_is_added_at_a_time_is_whole_and_symmetric():
    size = 2 * PANEL + 3
    rows = torch.randn(5, size)
    moment = Moment(size)
    moment.add(rows)
    torch.testing.assert_close(moment.value, rows.double().T @ rows.double() / 5, atol=1e-5, rtol=1e-5)
    assert torch.equal(moment.value, moment.value.T)


def test_masked_vectors_do_not_count():
    x = torch.randn(2, 3, 4)
    mask = torch.tensor([[True, True, False], [True, False, False]])
    garbage = torch.where(mask[..., None], x, torch.full_like(x, 1e6))
    masked, plain = Moment(4), Moment(4)
    masked.add(garbage, mask)
    plain.add(x[mask])
    torch.testing.assert_close(masked.value, plain.value)
