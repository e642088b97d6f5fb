"""The decoder: its size, its start at MaskCLIP, one gated convolution by hand, its file."""

import torch
import torch.nn.functional as F
from small import same

from ovseg.training.decoder import WEIGHTS, Decoder


def trained(width):
    """A decoder none of whose parameters has the value it started with."""
    torch.manual_seed(0)
    decoder = Decoder(width).requires_grad_(False)
    for parameter in decoder.parameters():
        parameter.add_(torch.randn_like(parameter) * 0.3)
    for block in decoder.blocks:
        block.gate.add_(0.8)
    return decoder


def random(*shape, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=dtype)


def test_it_has_the_papers_number_of_parameters_at_width_512():
    assert sum(p.numel() for p in Decoder(512).parameters() if p.requires_grad) == 4_721_666


def test_untrained_it_is_exactly_nearest_upsampling():
    features = random(2, 6, 3, 5, dtype=torch.float32) * 10
    assert torch.equal(Decoder(6)(features), features.repeat_interleave(2, 2).repeat_interleave(2, 3))


def test_gated_conv_is_layer_norm_gelu_convolution_and_gate():
    block, x = trained(4).blocks[0].double(), random(2, 4, 3, 5)
    mean, variance = x.mean(1, keepdim=True), x.var(1, unbiased=False, keepdim=True)
    y = (x - mean) / (variance + 1e-5).sqrt() * block.norm.weight.view(1, 4, 1, 1) + block.norm.bias.view(1, 4, 1, 1)
    y = y * 0.5 * (1 + torch.erf(y / 2**0.5))
    columns = F.unfold(y, 3, padding=1)  # 2, 4*3*3, 15
    convolved = (block.conv.weight.flatten(1) @ columns + block.conv.bias[:, None]).unflatten(2, (3, 5))
    gate = (block.gate.exp() - (-block.gate).exp()) / (block.gate.exp() + (-block.gate).exp())
    assert gate.abs() > 0.1
    torch.testing.assert_close(block(x), x + gate * convolved, rtol=1e-10, atol=1e-10)


def test_each_embedding_depends_on_its_neighbourhood_only():
    decoder, x = trained(4).double(), random(1, 4, 5, 5)
    changed = x.clone()
    changed[0, 0, 2, 2] += 1  # upsampled, rows and columns 4 and 5; two 3x3 convolutions reach two further
    difference = (decoder(changed) - decoder(x)).abs().amax((0, 1))
    reached = torch.zeros(10, 10, dtype=torch.bool)
    reached[2:8, 2:8] = True
    assert torch.equal(difference > 0, reached)


def test_what_is_saved_is_loaded_ready_for_evaluation(tmp_path):
    decoder, folder = trained(6).to(memory_format=torch.channels_last), tmp_path / "models" / "new"
    Decoder(6).save(folder)
    decoder.save(folder)  # over the other
    loaded = Decoder.load(folder)
    assert [file.name for file in folder.iterdir()] == [WEIGHTS]
    assert same(loaded.state_dict(), decoder.state_dict()) and not loaded.training
