import pytest
import torch
from torch import nn

from unlearn.methods.discriminator import PatchDiscriminator, map_size


def tiny(sample_size: int, **kwargs: object) -> PatchDiscriminator:
    return PatchDiscriminator(sample_size=sample_size, base_channels=4, **kwargs)


@pytest.mark.parametrize(
    ("sample_size", "blocks", "side"),
    [(6, 1, 2), (8, 1, 3), (12, 2, 2), (16, 2, 3), (32, 3, 3), (64, 4, 3), (96, 4, 5)],
)
def test_default_blocks_and_map(sample_size: int, blocks: int, side: int) -> None:
    discriminator = tiny(sample_size)
    assert discriminator.num_blocks == blocks
    logits = discriminator(torch.zeros(2, 4, sample_size, sample_size))
    assert logits.shape == (2, 1, side, side)


@pytest.mark.parametrize("sample_size", range(6, 40))
def test_map_size_is_the_convolutions_arithmetic(sample_size: int) -> None:
    """The default is the most blocks for which floor((n + 2p - k)/s) + 1 ends at two or more."""
    discriminator = tiny(sample_size)
    sides, side = [], sample_size
    for _ in range(4):
        side = (side + 2 - 4) // 2 + 1
        sides.append((side + 2 - 4) // 1 + 1)
    assert discriminator.num_blocks == max(n for n, s in enumerate(sides, 1) if s >= 2)
    assert [map_size(sample_size, n) for n in range(1, 5)] == sides
    logits = discriminator(torch.zeros(1, 4, sample_size, sample_size))
    assert logits.shape[-1] == sides[discriminator.num_blocks - 1]


def test_layers_are_those_of_the_patchgan() -> None:
    layers = list(PatchDiscriminator().net)
    convs = [layer for layer in layers if isinstance(layer, nn.Conv2d)]
    assert [conv.out_channels for conv in convs] == [64, 128, 256, 512, 1]
    assert [conv.stride for conv in convs] == [(2, 2)] * 4 + [(1, 1)]
    assert {conv.kernel_size for conv in convs} == {(4, 4)}
    assert {conv.padding for conv in convs} == {(1, 1)}
    block = [nn.Conv2d, nn.GroupNorm, nn.LeakyReLU]
    assert [type(x) for x in layers] == [nn.Conv2d, nn.LeakyReLU, *block * 3, nn.Conv2d]
    assert {x.negative_slope for x in layers if isinstance(x, nn.LeakyReLU)} == {0.2}
    assert [x.num_groups for x in layers if isinstance(x, nn.GroupNorm)] == [32, 32, 32]


def test_batch_norm_and_blocks_can_be_chosen() -> None:
    discriminator = tiny(64, norm="batch", num_blocks=3)
    norms = [x for x in discriminator.net if isinstance(x, nn.BatchNorm2d | nn.GroupNorm)]
    assert [type(x) for x in norms] == [nn.BatchNorm2d] * 2
    assert discriminator(torch.zeros(2, 4, 64, 64)).shape == (2, 1, 7, 7)


def test_channels_stop_at_eight_times_the_first() -> None:
    discriminator = tiny(128, num_blocks=5)
    convs = [x for x in discriminator.net if isinstance(x, nn.Conv2d)]
    assert [conv.out_channels for conv in convs] == [4, 8, 16, 32, 32, 1]


@pytest.mark.parametrize("base_channels", [1, 3, 10, 17, 24])
def test_group_norm_divides_every_width(base_channels: int) -> None:
    discriminator = PatchDiscriminator(sample_size=64, base_channels=base_channels)
    assert discriminator(torch.zeros(1, 4, 64, 64)).isfinite().all()


def test_group_norm_judges_each_sample_alone() -> None:
    """What makes data parallelism exact: a sample's logits do not depend on its batch."""
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(3, 4, 16, 16, generator=generator)
    group, batch = tiny(16), tiny(16, norm="batch")
    torch.testing.assert_close(group(latents)[:1], group(latents[:1]))
    assert not torch.allclose(batch(latents)[:1], batch(latents[:1]))


@pytest.mark.parametrize(
    ("sample_size", "num_blocks"), [(5, None), (1, None), (8, 2), (64, 5), (64, 0)]
)
def test_too_many_blocks_are_refused(sample_size: int, num_blocks: int | None) -> None:
    message = f"num_blocks={num_blocks} does not fit sample_size={sample_size}"
    with pytest.raises(ValueError, match=message):
        tiny(sample_size, num_blocks=num_blocks)


def test_unknown_norm_is_named() -> None:
    with pytest.raises(ValueError, match="norm='layer' is not one of group, batch"):
        tiny(16, norm="layer")
