"""Norm, way around, ReLU, dropout and mask in one against torch's, forward and backward."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from interkd.kernels.norm_activation import norm_activation

pytest.importorskip("triton")

SHAPES = [(2, 37, 5), (1, 2, 3), (3, 150, 70), (2, 64, 128), (20, 9, 64)]


def norms(channels: int, count: int) -> list[nn.BatchNorm2d]:
    made = [nn.BatchNorm2d(channels, momentum=0.3) for _ in range(count)]
    for norm in made:
        nn.init.normal_(norm.weight, 1.0, 0.5)
        nn.init.normal_(norm.bias)
    return made


def masked(batch: int, frames: int) -> Tensor:
    lengths = torch.randint(1, frames + 1, (batch,))
    return (torch.arange(frames) < lengths[:, None])[:, :, None]


def expected(x: Tensor, norm: nn.BatchNorm2d) -> Tensor:
    out = norm(x.transpose(1, 2)[:, :, None])
    assert isinstance(out, Tensor)
    return out.squeeze(2).transpose(1, 2)


@pytest.mark.parametrize("with_around", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_values_gradients_and_statistics_are_torchs(
    device: torch.device, shape: tuple[int, int, int], with_around: bool
) -> None:
    torch.manual_seed(0)
    batch, frames, channels = shape
    inputs = [torch.randn(shape) * 3 + 40 for _ in range(1 + with_around)]
    upstream = torch.randn(shape)
    mask = masked(batch, frames)
    own = norms(channels, 1 + with_around)
    results = []
    for dtype in (torch.float64, torch.float32):
        on = device if dtype == torch.float32 else torch.device("cpu")
        leaves = [x.to(on, dtype).requires_grad_() for x in inputs]
        layers = [nn.BatchNorm2d(channels, momentum=0.3).to(on, dtype) for _ in own]
        for layer, source in zip(layers, own, strict=True):
            layer.load_state_dict(source.state_dict())
        if dtype == torch.float64:
            out = sum(expected(x, norm) for x, norm in zip(leaves, layers, strict=True))
            assert isinstance(out, Tensor)
            out = out.relu() * mask
        else:
            out = norm_activation(
                leaves[0],
                layers[0],
                leaves[1] if with_around else None,
                layers[1] if with_around else None,
                mask.to(on),
                dropout=0.0,
                seed=None,
                stream=0,
            )
        torch.autograd.backward(out, upstream.to(out))
        found = [out.detach(), *(x.grad for x in leaves)]
        for layer in layers:
            found += [layer.weight.grad, layer.bias.grad, layer.running_mean, layer.running_var]
        results.append(found)
    for wanted, got in zip(*results, strict=True):
        assert wanted is not None
        assert got is not None
        assert got.dtype == torch.float32
        torch.testing.assert_close(got.cpu().double(), wanted, rtol=2e-4, atol=2e-4)


def run(x: Tensor, mask: Tensor, dropout: float, seed: int, stream: int = 0) -> Tensor:
    norm = nn.BatchNorm2d(x.shape[-1]).to(x.device)
    seeds = torch.tensor(seed, device=x.device)
    return norm_activation(x, norm, None, None, mask, dropout=dropout, seed=seeds, stream=stream)


@pytest.mark.parametrize("dropout", [0.1, 0.5])
def test_dropout_keeps_its_share_enlarged(device: torch.device, dropout: float) -> None:
    torch.manual_seed(0)
    x = torch.randn(4, 200, 130, device=device)
    mask = masked(4, 200).to(device)
    whole, dropped = run(x, mask, 0.0, 1), run(x, mask, dropout, 1)
    active = whole > 0
    assert (dropped[~active] == 0).all()
    kept = dropped[active] > 0
    count = int(active.sum())
    spread = (dropout * (1 - dropout) / count) ** 0.5
    assert abs(kept.float().mean().item() - (1 - dropout)) < 4 * spread
    torch.testing.assert_close(
        dropped[dropped > 0], whole[dropped > 0] / (1 - dropout), rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize("dropout", [0.1, 0.5])
def test_dropout_favours_nothing_and_neighbours_do_not_agree(
    device: torch.device, dropout: float
) -> None:
    frames, channels = 640, 130
    x = torch.randn(1, frames, channels, device=device)
    mask = torch.ones(1, frames, 1, dtype=torch.bool, device=device)
    norm = nn.BatchNorm2d(channels).to(device)
    nn.init.constant_(norm.bias, 20.0)  # all are positive
    seed = torch.tensor(1, device=device)
    out = norm_activation(x, norm, None, None, mask, dropout=dropout, seed=seed, stream=0)
    kept = (out[0] > 0).float()

    def is_near(mean: torch.Tensor, expected: float, count: int) -> None:
        spread = (expected * (1 - expected) / count) ** 0.5
        assert ((mean - expected).abs() < 5 * spread).all()

    is_near(kept.mean(0), 1 - dropout, frames)
    is_near(kept.mean(1), 1 - dropout, channels)
    both = dropout**2 + (1 - dropout) ** 2
    for rows in (1, 16, 32, 48, 64, 128):  # within a tile's part, from part to part, tile to tile
        agree = (kept[rows:] == kept[:-rows]).float()
        is_near(agree.mean(), both, agree.numel())
    for columns in (1, 64, 128):
        agree = (kept[:, columns:] == kept[:, :-columns]).float()
        is_near(agree.mean(), both, agree.numel())


def test_dropout_is_of_seed_and_stream(device: torch.device) -> None:
    x = torch.randn(2, 50, 40, device=device)
    mask = torch.ones(2, 50, 1, dtype=torch.bool, device=device)
    first = run(x, mask, 0.5, 7)
    assert torch.equal(first, run(x, mask, 0.5, 7))
    active = run(x, mask, 0.0, 7) > 0
    for other in (run(x, mask, 0.5, 8), run(x, mask, 0.5, 7, stream=3)):
        agree = ((first > 0) == (other > 0))[active].float().mean().item()
        assert abs(agree - 0.5) < 0.1


@pytest.mark.parametrize("with_around", [False, True])
def test_gradients_with_dropout(device: torch.device, with_around: bool) -> None:
    """The same numbers are dropped: torch's gradients through what the kernel kept."""
    torch.manual_seed(0)
    shape = (3, 70, 66)
    x, around = (torch.randn(shape, device=device).requires_grad_() for _ in range(2))
    mask = masked(3, 70).to(device)
    first, second = (norm.to(device) for norm in norms(66, 2))
    seed = torch.tensor(3, device=device)
    leaves = [x, first.weight, first.bias]
    leaves += [around, second.weight, second.bias] if with_around else []
    out = norm_activation(
        x,
        first,
        around if with_around else None,
        second if with_around else None,
        mask,
        dropout=0.3,
        seed=seed,
        stream=1,
    )
    upstream = torch.randn_like(out)
    got = torch.autograd.grad(out, leaves, upstream)
    wanted_out = expected(x, first) + (expected(around, second) if with_around else 0)
    wanted_out = wanted_out.relu() * (out > 0) / 0.7
    torch.testing.assert_close(out, wanted_out, rtol=1e-4, atol=1e-4)
    for own, right in zip(got, torch.autograd.grad(wanted_out, leaves, upstream), strict=True):
        torch.testing.assert_close(own, right, rtol=1e-3, atol=1e-3)


def test_bfloat16_keeps_its_dtype(device: torch.device) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 30, 20).to(device, torch.bfloat16).requires_grad_()
    mask = masked(2, 30).to(device)
    out = run(x, mask, 0.0, 0)
    assert out.dtype == torch.bfloat16
    norm = nn.BatchNorm2d(20).to(device)
    wanted = expected(x.detach().float(), norm).relu() * mask
    torch.testing.assert_close(out.float(), wanted, rtol=1e-2, atol=1e-2)
    (gradient,) = torch.autograd.grad(out.sum(), x)
    assert gradient.dtype == torch.bfloat16


def test_each_weight_has_a_gradient_of_its_own(device: torch.device) -> None:
    """Clipping changes gradients in place: what two share it would change twice."""
    torch.manual_seed(0)
    x, around = (torch.randn(2, 9, 6, device=device).requires_grad_() for _ in range(2))
    first, second = (norm.to(device) for norm in norms(6, 2))
    mask = torch.ones(2, 9, 1, dtype=torch.bool, device=device)
    out = norm_activation(x, first, around, second, mask, dropout=0.0, seed=None, stream=0)
    torch.autograd.backward(out, torch.ones_like(out))
    weights = [*first.parameters(), *second.parameters()]
    before = [weight.grad.clone() for weight in weights if weight.grad is not None]
    norm = nn.utils.clip_grad_norm_(weights, 0.01)
    for weight, gradient in zip(weights, before, strict=True):
        torch.testing.assert_close(weight.grad, gradient * 0.01 / norm, rtol=1e-4, atol=1e-8)


def test_one_frame_far_from_the_rest(device: torch.device) -> None:
    torch.manual_seed(0)
    x = torch.randn(1, 5000, 3)
    x[0, 0] = 1000.0
    norm = nn.BatchNorm2d(3, momentum=1.0).to(device)
    mask = torch.ones(1, 5000, 1, dtype=torch.bool, device=device)
    norm_activation(x.to(device), norm, None, None, mask, dropout=0.0, seed=None, stream=0)
    assert norm.running_var is not None
    variance = x[0].double().var(0)
    torch.testing.assert_close(norm.running_var.cpu().double(), variance, rtol=1e-4, atol=0)


def test_what_is_no_number_stays_so(device: torch.device) -> None:
    x = torch.randn(1, 40, 3, device=device)
    x[0, 3, 1] = torch.nan
    mask = torch.ones(1, 40, 1, dtype=torch.bool, device=device)
    out = run(x, mask, 0.0, 0)
    assert out[..., 1].isnan().all()
    assert not out[..., 0].isnan().any()


def test_replays_of_a_graph_drop_others_each_time(device: torch.device) -> None:
    if device.type != "cuda":
        pytest.skip("needs --device cuda")
    x = torch.randn(2, 50, 40, device=device)
    mask = torch.ones(2, 50, 1, dtype=torch.bool, device=device)
    norm = nn.BatchNorm2d(40).to(device)

    def step() -> Tensor:
        seed = torch.randint(1 << 62, (1,), device=device)
        return norm_activation(x, norm, None, None, mask, dropout=0.5, seed=seed, stream=0)

    torch.manual_seed(3)
    wanted = [step() for _ in range(2)]
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = step()
    torch.manual_seed(3)
    for expected_out in wanted:
        graph.replay()
        assert torch.equal(out, expected_out)
    assert not torch.equal(*wanted)
