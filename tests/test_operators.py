"""The operators' own checks, behind those of the public functions: the last line, for other callers."""

import pytest
import torch

from jair_kernels import _library

pytestmark = pytest.mark.skipif(
    not _library.has_kernel("token_pool", "CPU"), reason=f"no CPU kernels: {_library.load_error}"
)


def assert_refused(name: str, *arguments: object) -> None:
    with pytest.raises(RuntimeError, match="unexpected"):
        getattr(torch.ops.jair_kernels, name)(*arguments)


def test_an_operator_refuses_what_it_would_read_past() -> None:
    x, scores, none = torch.ones(2, 5, 8), torch.ones(2, 5, 3), torch.empty(0)
    w1, w2 = torch.ones(4, 8), torch.ones(3, 4)
    y, softmax, stats = torch.ones(2, 3, 8), torch.ones(2, 3, 2), torch.ones(2, 5, 2)
    learner = (x, w1, None, w2, None, None, None)
    assert_refused("token_pool_forward", x[..., :0], scores, None, False, False)
    assert_refused("token_pool_forward", x[:, :0], scores[:, :0], None, False, False)
    assert_refused("token_pool_backward", y, x, scores, None, None, none, False, False)
    assert_refused("token_pool_backward", y, x, scores, None, None, softmax.double(), False, False)
    assert_refused(
        "tokenlearner_forward", x, w1.double(), None, w2, None, None, None, None, 1e-6, True, False
    )
    hidden = torch.ones(2, 5, 4)
    assert_refused("tokenlearner_backward", y, *learner, None, None, none, stats, hidden, True)
    assert_refused("tokenlearner_backward", y, *learner, None, None, softmax, none, hidden, True)
    for wrong in (none, hidden[..., :3], hidden[:, :4], hidden.double()):
        assert_refused("tokenlearner_backward", y, *learner, None, None, softmax, stats, wrong, True)
        assert_refused("tokenfuser_backward", x, x, y, *learner[1:], stats, wrong, True)
    assert_refused("tokenfuser_backward", x, x, y, *learner[1:], none, hidden, True)
    assert_refused("query_pool_forward", x[..., :0], y[..., :0], None, False, 1e-6)
    heads = torch.ones(2, 5, 2, 4)
    assert_refused("cross_attention_forward", heads, heads[:, :, :0], heads[:, :, :0], None, None, 1.0)
    assert_refused("cross_attention_backward", heads, heads, heads, heads, None, None, None, none, 1.0, False)
