"""How fast, how large, how far from the floor: `python -m ovseg.bench [--device cuda] [--json FILE] [--figure FILE]`.

Shapes are the paper's (ViT-B/16, d = 512, 28x28 embeddings of a 224 px image, 448 windows, 150 classes); batches are what the
device allows. Each case runs in a process of its own. The floor of a case is what multiply-adds that no exact method
avoids would take at the rate of a large matmul in the same precision on the same device (of the loss, S once), or what
must be read and written at least would take at the rate of a large copy, if that is more.
"""

import argparse
import json
import math
import multiprocessing
import platform
import re
import sys
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from . import params
from .methods import alignment

LENGTH, WIDTH = 784, 512
WEIGHTS = 2 * 86_000_000  # bytes of a ViT-B in bfloat16
SETTINGS = params.Mgca(
    granularity="object+region+pixel", alpha=0.4, beta=0.05, k=0.06, tau=0.07, direction="both", mask_equal_texts=True, selection="float32"
)  # fmt: skip
SEGMENT = {
    "unit": "meta-point", "meta_points": 36, "groups": 8, "affinity": "cosine", "short_side": 448, "window": 448, "stride": 224,
    "batch": 32, "precision": "bfloat16", "scale": 14.3, "threshold": 0.5, "templates": ["a photo of a {}."],
}  # fmt: skip


def plain_losses(pixels, texts, subjects, settings):
    """The losses as the equations say, with all of S (B, B, L) and r (B, B, d): what alignment.losses is compared with."""
    length, width = pixels.shape[1:]
    diagonal = torch.eye(len(texts), dtype=torch.bool, device=texts.device)
    negative = alignment.negatives(subjects, settings)
    scores = torch.einsum("ipd,jd->ijp", pixels, texts)

    def pool(scores, share):
        kept, index = scores.topk(alignment.top_count(share, length), dim=-1)
        return F.normalize(torch.zeros_like(scores).scatter(-1, index, kept.softmax(-1)) @ pixels, dim=-1)

    paired = scores.diagonal().T
    objects, regions, unit = pool(paired[:, None], settings.alpha)[:, 0], pool(scores, settings.beta), F.normalize(texts, dim=-1)
    hard = torch.einsum("ijd,jd->ij", regions, unit)
    positive = paired.topk(alignment.top_count(settings.k, length)).values[:, -1:]
    logits = {
        "object": objects @ unit.T / settings.tau,
        "region": torch.where(diagonal, (objects * unit).sum(-1, keepdim=True), hard) / settings.tau,
        "pixel": torch.where(diagonal, positive, scores.amax(-1)) / math.sqrt(width),
    }
    return {level: info for level, info in ((k, alignment.info_nce(v, negative, settings.direction)) for k, v in logits.items())}


# ---- measuring


def synchronise(device):
    if device == "cuda":
        torch.cuda.synchronize()


def timed(function, device, repeats=3):
    """The fastest of some runs, in seconds, after one that warms up."""
    best = math.inf
    for run in range(repeats + 1):
        synchronise(device)
        start = time.perf_counter()
        function()
        synchronise(device)
        best = min(best, time.perf_counter() - start) if run else best
    return best


def resident(what):
    """Bytes of this process' memory: "VmRSS" now, "VmHWM" at its highest since `peak_memory` forgot it."""
    status = Path("/proc/self/status").read_text()
    return int(re.search(rf"{what}:\s+(\d+) kB", status)[1]) * 1024


def peak_memory(function, device):
    """Bytes that a run takes beyond what is held before it. On a CPU from Linux' /proc; NaN where there is none."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        function()
        return torch.cuda.max_memory_allocated() - before
    if not Path("/proc/self/clear_refs").exists():
        function()
        return float("nan")
    Path("/proc/self/clear_refs").write_text("5")  # the highest mark becomes what is held now
    before = resident("VmRSS")
    function()
    return resident("VmHWM") - before


def rates(device):
    """{"float32", "bfloat16": multiply-adds a second of a large matmul; "copy": bytes a second, read and written}."""
    size = 8192 if device == "cuda" else 2048
    found = {}
    for name in ("float32", "bfloat16"):
        a, b = (torch.randn(size, size, device=device, dtype=getattr(torch, name)) for _ in range(2))
        found[name] = size**3 / timed(lambda a=a, b=b: a @ b, device)
    source = torch.empty(1 << 26, device=device)
    target = torch.ones_like(source)
    found["copy"] = 2 * source.nbytes / timed(lambda: source.copy_(target), device)
    return found


# ---- cases: each returns {"seconds", "memory" (bytes), "macs": {precision: count}, "bytes" (read or written once at least)}


def loss_case(device, which, batch, length=LENGTH, selection="float32"):
    """The three losses, forward and backward, float32. With a lower selection, how far the gradient is from the exact one."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randn(batch, length, WIDTH, generator=generator).to(device).requires_grad_()
    texts = (torch.randn(batch, WIDTH, generator=generator) / 8).to(device)
    subjects = torch.arange(batch, device=device)
    losses, settings = {"plain": plain_losses, "ours": alignment.losses}[which], SETTINGS.model_copy(update={"selection": selection})

    def run(pixels=pixels, settings=settings):
        pixels.grad = None
        sum(losses(pixels, texts[: len(pixels)], subjects[: len(pixels)], settings).values()).backward()
        return pixels.grad

    run(pixels[:2].detach().requires_grad_())  # what is loaded when first used is no memory of the losses
    memory = peak_memory(run, device) - pixels.nbytes  # inputs and their gradients are not counted
    found = {"seconds": timed(run, device, 2), "memory": memory, "macs": {selection: batch * batch * length * WIDTH}}
    found["bytes"] = 2 * pixels.nbytes  # read, and their gradients written
    if selection != SETTINGS.selection:
        exact = run(settings=SETTINGS)
        found["gradient_error"] = ((run() - exact).norm() / exact.norm()).item()
    return found


def vit(device):
    """A ViT-B/16 with random weights: speed does not depend on what it knows."""
    import open_clip

    from .clip.frozen import FrozenCLIP

    torch.manual_seed(0)
    clip = open_clip.create_model("ViT-B-16-quickgelu", device=device)
    return FrozenCLIP(clip, open_clip.get_tokenizer("ViT-B-16-quickgelu"), "bfloat16")


def vit_macs(tokens, width=768, layers=12):
    """Multiply-adds of a ViT-B over `tokens` tokens: projections and MLP, then attention itself."""
    return layers * (12 * tokens * width * width + 2 * tokens * tokens * width)


def decoder_macs(pixels, width=WIDTH):
    """Multiply-adds of the decoder's two convolutions over `pixels` embeddings."""
    return 2 * pixels * 9 * width * width


def encode_case(device, batch):
    """The frozen encoder alone: dense features of images of 224 px."""
    clip, images = vit(device), np.random.default_rng(0).integers(0, 256, (batch, 224, 224, 3), np.uint8)

    def run():
        return clip.encode_dense(images)

    memory = peak_memory(run, device)
    return {"seconds": timed(run, device), "memory": memory, "macs": {"bfloat16": batch * vit_macs(197)}, "bytes": WEIGHTS}


def step_case(device, batch):
    """A training step from images: encoder, decoder, losses, backward, optimiser."""
    from .methods.decoder import Decoder

    clip, images = vit(device), np.random.default_rng(0).integers(0, 256, (batch, 224, 224, 3), np.uint8)
    decoder = Decoder(WIDTH).to(device, memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(decoder.parameters(), fused=True)
    texts, subjects = torch.randn(batch, WIDTH, device=device), torch.arange(batch, device=device)

    def run():
        features = clip.encode_dense(images)
        with torch.autocast(device, torch.bfloat16):
            pixels = decoder(features)
        pixels = pixels.float().flatten(2).transpose(1, 2)
        optimizer.zero_grad(set_to_none=True)
        sum(alignment.losses(pixels, texts, subjects, SETTINGS).values()).backward()
        optimizer.step()

    memory = peak_memory(run, device)
    macs = {"bfloat16": batch * (vit_macs(197) + 3 * decoder_macs(LENGTH)), "float32": batch * batch * LENGTH * WIDTH}
    held = 4 * batch * LENGTH * WIDTH  # of the pixel embeddings: read by the losses, their gradients written
    return {"seconds": timed(run, device, 2), "memory": memory, "macs": macs, "bytes": WEIGHTS + 2 * held}


def segment_case(device, which, classes=150, height=480, width=640):
    """An image to its label map, from pixels. plain: a window at a time, its scores upsampled to full size at once."""
    from PIL import Image

    from .methods.decoder import Decoder
    from .segmentation import units
    from .segmentation.segmenter import Segmenter
    from .segmentation.windows import cut_windows, stitch, to_labels

    clip, settings = vit(device), params.Segment(**SEGMENT)
    segmenter = Segmenter(clip, Decoder(WIDTH).to(device), settings)
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8))
    names = F.normalize(torch.randn(classes, WIDTH, device=device), dim=-1)

    @torch.no_grad()
    def plain():
        windows, where = cut_windows(image, settings)
        total = torch.zeros(classes, max(448, where.height), max(448, where.width), device=device)
        count = torch.zeros_like(total[0])
        for window, (top, left) in zip(windows, where.positions, strict=True):
            embeddings = segmenter.embed(clip.encode_dense(window[None]))
            embeddings, _ = units.form(embeddings, settings.unit, settings.meta_points, settings.groups, settings.affinity)
            scores = torch.einsum("ndhw,cd->nchw", F.normalize(embeddings, dim=1), names)
            place = np.s_[..., top : top + 448, left : left + 448]
            total[place] += F.interpolate(scores, (448, 448), mode="bilinear", align_corners=False)[0]
            count[place] += 1
        total = (total / count)[:, : where.height, : where.width]
        return to_labels(F.interpolate(total[None], (height, width), mode="bilinear", align_corners=False)[0])

    @torch.no_grad()
    def ours():
        windows, where = cut_windows(image, settings)
        batches = (windows[start : start + settings.batch] for start in range(0, len(windows), settings.batch))
        parts = [segmenter.classify(segmenter.embed(clip.encode_dense(batch)), names) for batch in batches]
        return stitch(torch.cat(parts), where, settings.window, (height, width)).labels()

    run = {"plain": plain, "ours": ours}[which]
    memory = peak_memory(run, device)
    windows = len(cut_windows(image, settings)[0])
    macs = {"bfloat16": windows * (vit_macs(785) + decoder_macs(56 * 56))}
    return {"seconds": timed(run, device), "memory": memory, "macs": macs, "bytes": WEIGHTS + 8 * height * width}  # labels are int64


def cases(device):
    """[(group, name, function, arguments)]: what is measured, by device."""
    large = device == "cuda"
    batches = (256, 512, 1024) if large else (64, 128, 256)
    found = [("loss over B", f"{which}, B = {b}", loss_case, (which, b)) for b in batches for which in ("plain", "ours")]
    length_batch = batches[0]
    found += [("loss over L", f"{w}, L = {n}", loss_case, (w, length_batch, n)) for n in (196, 784, 3136) for w in ("plain", "ours")]
    found += [("loss, bfloat16 selection", f"ours, B = {b}", loss_case, ("ours", b, LENGTH, "bfloat16")) for b in batches]
    images = 256 if large else 8
    found += [("encode", f"{images} images", encode_case, (images,)), ("step", f"{images} images", step_case, (images,))]
    found += [("segment over classes", f"{w}, {c} classes", segment_case, (w, c)) for c in (21, 150) for w in ("plain", "ours")]
    sizes = ((640, 480, ("plain", "ours")), (2048, 1024, ("plain", "ours")), (5472, 3648, ("ours",)))  # the plain one takes 12 GB of that
    return found + [
        ("segment over image size", f"{which}, {width}x{height}", segment_case, (which, 150, height, width))
        for width, height, both in sizes
        for which in both
    ]


def _in_process(connection, function, device, arguments):
    try:
        connection.send(function(device, *arguments))
    except (torch.OutOfMemoryError, MemoryError):
        connection.send({"error": "out of memory"})


def measure(device, progress=print):
    """Run every case. Returns {"machine", "rates", "cases": [{"group", "name", "seconds", "memory", "floor", "ratio"}]}."""
    context = multiprocessing.get_context("spawn")
    speed, rows = rates(device), []
    for group, name, function, arguments in cases(device):
        here, there = context.Pipe()
        process = context.Process(target=_in_process, args=(there, function, device, arguments))
        process.start()
        there.close()
        try:
            found = here.recv()
        except EOFError:
            process.join()
            found = {"error": f"ended with exit code {process.exitcode}"}  # -9 is Linux short of memory
        process.join()
        row = {"group": group, "name": name} | found
        if "macs" in row:
            arithmetic = sum(count / speed[precision] for precision, count in row.pop("macs").items())
            row["floor"] = max(arithmetic, row.pop("bytes") / speed["copy"])
            row["ratio"] = row["seconds"] / row["floor"]
        rows.append(row)
        progress(line(row))
    kind = torch.cuda.get_device_name() if device == "cuda" else f"{torch.get_num_threads()} cores, {platform.machine()}"
    return {"machine": kind, "torch": torch.__version__, "rates": speed, "cases": rows}


HEAD = f"{'':24} {'':32} {'seconds':>9} {'memory':>10} {'floor':>9} {'ratio':>6}"


def line(row):
    """One case as a line of the table."""
    if "error" in row:
        return f"{row['group']:24} {row['name']:32} {row['error']}"
    numbers = f"{row['seconds']:9.3f} {row['memory'] / 2**20:6.0f} MiB {row['floor']:9.3f} {row['ratio']:6.1f}"
    return f"{row['group']:24} {row['name']:32} {numbers}"


def main():
    parser = argparse.ArgumentParser(prog="python -m ovseg.bench", description="Time, peak memory and distance from the floor.")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--json", type=Path, help="write the measurements here")
    parser.add_argument("--figure", type=Path, help="draw how cost grows here")
    options = parser.parse_args()
    try:
        params.device(options.device)
    except params.ParamsError as error:
        sys.exit(f"{error}")
    print(HEAD)
    found = measure(options.device)
    speed = found["rates"]
    print(
        f"floor from {', '.join(f'{n} {speed[n] / 1e9:.0f} GMAC/s' for n in ('float32', 'bfloat16'))}; copy {speed['copy'] / 1e9:.0f} GB/s"
    )
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n")
    if options.figure:
        from .study import charts

        charts.growth(found).savefig(options.figure, dpi=110)


if __name__ == "__main__":
    main()
