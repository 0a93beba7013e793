"""A model's linear layers multiply by packed weights while attached, and by their own before, after and for gradients."""

from pathlib import Path

import torch
from torch import nn

from steering.engine.cpu.graphs import PackedLinears
from steering.model.blocks import read_blocks
from steering.model.loading import load
from tests.narrowing import present

ROWS = 5


def model() -> nn.Sequential:
    """Two layers, one without a bias, and one that cannot be packed since its width is odd."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layers = nn.Linear(64, 100), nn.Linear(100, 33, bias=False), nn.Linear(33, 8)
    return nn.Sequential(*layers).to(torch.bfloat16).requires_grad_(False)


def rows() -> torch.Tensor:
    """(row, width)."""
    return torch.randn(ROWS, 64, generator=torch.Generator().manual_seed(1)).to(torch.bfloat16)


def test_packed_weights_multiply_as_the_models_own(kernels: None) -> None:
    layers, given = model(), rows()
    expected = layers(given)
    linears = PackedLinears(layers)
    linears.attach(linears.pack())
    torch.testing.assert_close(layers(given), expected, rtol=2e-2, atol=2e-2)
    linears.close()
    assert torch.equal(layers(given), expected)


def test_they_are_what_is_multiplied_by(kernels: None) -> None:
    """Planted: weights of zeros leave the bias alone."""
    layers = model()
    first = layers[0]
    assert isinstance(first, nn.Linear)
    linears = PackedLinears(layers)
    linears.attach([torch.zeros_like(weight) for weight in linears.pack()])
    assert torch.equal(first(rows()), first.bias.expand(ROWS, -1))
    linears.close()


def test_what_the_kernel_does_not_take_stays_as_it_is(kernels: None) -> None:
    """An odd width, another type, and a layer that somebody else stands in for."""
    layers = (
        nn.Sequential(nn.Linear(33, 4), nn.Linear(64, 4), nn.Linear(64, 4)).to(torch.bfloat16).requires_grad_(False)
    )
    layers[1].to(torch.float32)
    layers[2].forward = lambda rows: rows
    linears = PackedLinears(layers)
    assert linears.pack() == []
    linears.attach([])
    linears.close()
    assert "forward" in layers[2].__dict__


def test_placeholders_have_the_packed_shapes() -> None:
    linears = PackedLinears(model())
    assert [one.shape for one in linears.placeholders()] == [one.shape for one in linears.pack()]
    assert len(linears.placeholders()) == 2


def with_gradient(layers: nn.Module) -> tuple[torch.Tensor, torch.Tensor]:
    """(result, gradient of a weighted sum of it by the rows)."""
    given = rows().requires_grad_()
    result = layers(given)
    weights = torch.randn(result.shape, generator=torch.Generator().manual_seed(2))
    (gradient,) = torch.autograd.grad((result.float() * weights).sum(), given)
    return result.detach(), gradient


def test_gradients_are_those_of_the_models_own_weights(kernels: None) -> None:
    layers = model()
    expected = with_gradient(layers)
    linears = PackedLinears(layers)
    linears.attach(linears.pack())
    torch.testing.assert_close(with_gradient(layers), expected, rtol=2e-2, atol=2e-2)
    assert not layers(rows()).requires_grad
    linears.close()


def test_a_gradient_keeps_the_weights_by_reference_and_no_copy(kernels: None) -> None:
    layers = model()
    linears = PackedLinears(layers)
    linears.attach(linears.pack())
    kept: list[torch.Tensor] = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        layers(rows().requires_grad_())
    weights = {parameter.data_ptr() for parameter in layers.parameters()}
    assert len(kept) == 3
    assert all(tensor.data_ptr() in weights for tensor in kept)
    linears.close()


def test_blocks_of_the_embedded_file_have_the_bits_of_its_dequantized_weights(kernels: None, model_cache: Path) -> None:
    """The sizes of every layer, and the bits of the first ones and of the head, which is in another format than the rest."""
    loaded = load(None, cache_dir=model_cache, device="cpu", dtype="bfloat16")

    def packings() -> tuple[PackedLinears, PackedLinears, PackedLinears]:
        stored, both = (PackedLinears(loaded.model, weights, loaded.folder) for weights in ("gguf", "auto"))
        return PackedLinears(loaded.model), stored, both

    dense, stored, both = packings()
    assert set(stored.formats) == {"Q4_1", "Q8_0"}
    assert len(stored.formats) == len(read_blocks(present(loaded.folder)))
    sizes = [linears.bytes_by_format() for linears in (dense, stored, both)]
    assert sum(sizes[1].values()) < 0.4 * sizes[0]["bfloat16"]
    assert sizes[2] == sizes[0] | sizes[1]
    loaded.model.model.layers = loaded.model.model.layers[:4]
    layers = [layer for layer in loaded.model.modules() if isinstance(layer, nn.Linear)]
    given = [torch.randn(9, layer.in_features).to(torch.bfloat16) for layer in layers]
    results = []
    for linears in packings():
        linears.attach(linears.pack())
        few = [layer(one[:3]) for layer, one in zip(layers, given, strict=True)]
        results.append([*few, *(layer(one) for layer, one in zip(layers, given, strict=True))])
        linears.close()
    for ours in results[1:]:
        assert all(torch.equal(own, one) for own, one in zip(results[0], ours, strict=True))
    assert torch.equal(layers[0](given[0]), nn.functional.linear(given[0], layers[0].weight))


def test_int8_blocks_multiply_nearly_as_the_weights(kernels: None) -> None:
    """The second layer has a width that is not a multiple of 32, and stays in bfloat16."""
    layers, given = model(), rows()
    expected = layers(given)
    linears = PackedLinears(layers, "int8")
    assert linears.formats == ["Q8_0", None]
    linears.attach(linears.pack())
    assert linears.bytes_by_format() == {"Q8_0": 3 * 2 * 1632, "bfloat16": 48 * 128 * 2}
    found = layers(given)
    assert not torch.equal(found, expected)
    torch.testing.assert_close(found, expected, rtol=5e-2, atol=5e-2)
    linears.close()
