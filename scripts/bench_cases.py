"""What bench.py measures: the losses, CLIP, a training step and segmentation, ours beside plain versions without our shortcuts; and the
rate at which images are streamed from shards.

Shapes are the paper's: ViT-B/16, d = 512, 28x28 embeddings of a 224 px image, 448 px windows, 150 classes.
"""

import io
import math
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import torch
import torch.nn.functional as F
import webdataset as wds
from PIL import Image

from ovseg.methods import mgca
from ovseg.schema import Segment
from ovseg.segmentation.segmenter import Segmenter
from ovseg.segmentation.windows import cut_windows, to_labels
from ovseg.training.batches import StreamedImages
from ovseg.training.decoder import Decoder
from ovseg.training.objectives import info_nce

LENGTH, WIDTH = 784, 512
WEIGHTS = 2 * 86_000_000  # bytes of a ViT-B in bfloat16
MGCA = mgca.Settings(granularity="object+region+pixel", alpha=0.4, beta=0.05, k=0.06, tau=0.07, direction="both")
SEGMENT = Segment(
    unit="meta-point", meta_points=36, groups=8, affinity="cosine", short_side=448, max_ratio=4.5715, resize="bicubic", window=448,
    stride=224, batch=32, precision="bfloat16", synonyms="mean", averaged="cosine", scale=14.3, threshold=0.5, refine=None,
    templates=["a photo of a {}."],
)  # fmt: skip


def plain_losses(pixels, texts, negative, settings):
    """The losses as the equations say, with all of S (B, B, L) and r (B, B, d): what mgca.losses is compared with."""
    length, width = pixels.shape[1:]
    diagonal = torch.eye(len(texts), dtype=torch.bool, device=texts.device)
    scores = torch.einsum("ipd,jd->ijp", pixels, texts)

    def pool(scores, share):
        kept, index = scores.topk(mgca.top_count(share, length), dim=-1)
        return F.normalize(torch.zeros_like(scores).scatter(-1, index, kept.softmax(-1)) @ pixels, dim=-1)

    paired = scores.diagonal().T
    objects, regions, unit = pool(paired[:, None], settings.alpha)[:, 0], pool(scores, settings.beta), F.normalize(texts, dim=-1)
    hard = torch.einsum("ijd,jd->ij", regions, unit)
    positive = paired.topk(mgca.top_count(settings.k, length)).values[:, -1:]
    logits = {
        "object": objects @ unit.T / settings.tau,
        "region": torch.where(diagonal, (objects * unit).sum(-1, keepdim=True), hard) / settings.tau,
        "pixel": torch.where(diagonal, positive, scores.amax(-1)) / math.sqrt(width),
    }
    return {level: info_nce(of_level, negative, settings.direction) for level, of_level in logits.items()}


@dataclass
class Case:
    """What is measured. macs: {precision: multiply-adds}. bytes: read or written at least. held: of its memory, not counted."""

    run: Callable
    macs: dict[str, int]
    bytes: int
    held: int = 0


def loss_case(device, which, batch, length=LENGTH):
    """The three losses, forward and backward, float32."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randn(batch, length, WIDTH, generator=generator).to(device).requires_grad_()
    texts = (torch.randn(batch, WIDTH, generator=generator) / 8).to(device)
    negative = ~torch.eye(batch, dtype=torch.bool, device=device)
    losses = {"plain": plain_losses, "ours": mgca.losses}[which]

    def run(pixels=pixels):
        pixels.grad = None
        sum(losses(pixels, texts[: len(pixels)], negative[: len(pixels), : len(pixels)], MGCA).values()).backward()

    run(pixels[:2].detach().requires_grad_())  # what is loaded when first used is no memory of the losses
    return Case(run, {"float32": batch * batch * length * WIDTH}, 2 * pixels.nbytes, held=pixels.nbytes)


def vit(device):
    """A ViT-B/16 with random weights: speed does not depend on them."""
    import open_clip

    from ovseg.clip.frozen import FrozenCLIP

    torch.manual_seed(0)
    clip = open_clip.create_model("ViT-B-16-quickgelu", device=device)
    return FrozenCLIP(clip, open_clip.get_tokenizer("ViT-B-16-quickgelu"), "bfloat16")


def vit_macs(tokens, width=768, layers=12):
    """Multiply-adds of a ViT-B over `tokens` tokens: projections and MLP, then attention itself."""
    return layers * (12 * tokens * width * width + 2 * tokens * tokens * width)


def decoder_macs(pixels, width=WIDTH):
    """Multiply-adds of the decoder's two convolutions over `pixels` embeddings."""
    return 2 * pixels * 9 * width * width


def random_image(*shape):
    return np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)


def encode_case(device, batch):
    """The frozen encoder alone: dense features of images of 224 px."""
    clip, images = vit(device), random_image(batch, 224, 224)
    return Case(lambda: clip.encode_dense(images), {"bfloat16": batch * vit_macs(197)}, WEIGHTS)


def step_case(device, batch):
    """A training step from images: encoder, decoder, losses, backward, optimiser."""
    clip, images = vit(device), random_image(batch, 224, 224)
    decoder = Decoder(WIDTH).to(device, memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(decoder.parameters(), fused=True)
    texts, negative = torch.randn(batch, WIDTH, device=device), ~torch.eye(batch, dtype=torch.bool, device=device)

    def run():
        features = clip.encode_dense(images)
        with torch.autocast(device, torch.bfloat16):
            pixels = decoder(features)
        pixels = pixels.float().flatten(2).transpose(1, 2)
        optimizer.zero_grad(set_to_none=True)
        sum(mgca.losses(pixels, texts, negative, MGCA).values()).backward()
        optimizer.step()

    macs = {"bfloat16": batch * (vit_macs(197) + 3 * decoder_macs(LENGTH)), "float32": batch * batch * LENGTH * WIDTH}
    return Case(run, macs, WEIGHTS + 2 * 4 * batch * LENGTH * WIDTH)  # the losses read embeddings, and write their gradients


def segment_case(device, which, classes=150, height=480, width=640):
    """An image to its label map, from pixels. plain: a window at a time, its scores upsampled to full size at once."""
    segmenter, image = Segmenter(vit(device), Decoder(WIDTH).to(device), SEGMENT), Image.fromarray(random_image(height, width))
    names = F.normalize(torch.randn(classes, WIDTH, device=device), dim=-1)

    @torch.no_grad()
    def plain():
        windows, where = cut_windows(image, SEGMENT)
        total = torch.zeros(classes, max(448, where.height), max(448, where.width), device=device)
        count = torch.zeros_like(total[0])
        for window, (top, left) in zip(windows, where.positions, strict=True):
            described = segmenter.describe(segmenter.embed(segmenter.encode(window[None])))
            scores = torch.einsum("ndhw,cd->nchw", described, names)
            place = np.s_[..., top : top + 448, left : left + 448]
            total[place] += F.interpolate(scores, (448, 448), mode="bilinear", align_corners=False)[0]
            count[place] += 1
        total = (total / count)[:, : where.height, : where.width]
        return to_labels(F.interpolate(total[None], (height, width), mode="bilinear", align_corners=False)[0])

    def ours():
        windows, where = cut_windows(image, SEGMENT)
        described = segmenter.describe(segmenter.embed(segmenter.encode(windows)))
        return segmenter.classify(described, where, names, (height, width), image).labels()

    macs = {"bfloat16": len(cut_windows(image, SEGMENT)[0]) * (vit_macs(785) + decoder_macs(56 * 56))}
    return Case({"plain": plain, "ours": ours}[which], macs, WEIGHTS + 8 * height * width)  # labels are int64


def stream_case(device, workers, count=4096):
    """An epoch of images like CC3M's at 256 px, from 8 shards: batches of 256, decoded by workers, which nothing encodes."""
    folder, file, rng = tempfile.TemporaryDirectory(), io.BytesIO(), np.random.default_rng(0)
    smooth = Image.fromarray(rng.integers(0, 256, (24, 32, 3), np.uint8)).resize((341, 256), Image.Resampling.BICUBIC)
    Image.fromarray((np.asarray(smooth) + rng.normal(0, 7, (256, 341, 3))).clip(0, 255).astype(np.uint8)).save(file, "JPEG", quality=90)
    paths = [f"{folder.name}/{shard}.tar" for shard in range(8)]
    for path in paths:
        with wds.TarWriter(path) as tar:
            for key in range(count // 8):
                tar.write({"__key__": f"{key}", "jpg": file.getvalue()})
    keys = [f"{shard}/{key}" for shard in range(8) for key in range(count // 8)]
    images = StreamedImages(SimpleNamespace(encode_dense=len), paths, keys, 224, workers)

    def run(folder=folder):  # which goes with it
        return sum(size for _, size, _ in images.epoch(0, 0, 256, 0, torch.device("cpu")))

    return Case(run, {}, count * 224 * 224 * 3)


def cases(device):
    """[(group, name, function, arguments)]: what is measured, by device."""
    large = device == "cuda"
    batches = (256, 512, 1024) if large else (64, 128, 256)
    rows = [("loss over B", f"{which}, B = {b}", loss_case, (which, b)) for b in batches for which in ("plain", "ours")]
    rows += [("loss over L", f"{w}, L = {n}", loss_case, (w, batches[0], n)) for n in (196, 784, 3136) for w in ("plain", "ours")]
    images = 256 if large else 8
    rows += [("encode", f"{images} images", encode_case, (images,)), ("step", f"{images} images", step_case, (images,))]
    rows += [("segment over classes", f"{w}, {c} classes", segment_case, (w, c)) for c in (21, 150) for w in ("plain", "ours")]
    sizes = [(which, w, h) for w, h in ((640, 480), (2048, 1024)) for which in ("plain", "ours")]
    sizes += [("ours", 5472, 3648)]  # the plain one takes 12 GB of that
    rows += [("stream over workers", f"4096 images, {w}", stream_case, (w,)) for w in (1, 2, 4, 8, 16) if w <= len(os.sched_getaffinity(0))]
    return rows + [("segment over image size", f"{which}, {w}x{h}", segment_case, (which, 150, h, w)) for which, w, h in sizes]
