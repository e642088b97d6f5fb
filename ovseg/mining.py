"""Hard negatives: what every image holds that is most like every text of the batch (MGCA §3.2, Eq. 6 and 7).

The bulk of the method's cost: S has B*T*L entries of d multiply-adds each, and the pooled regions are B*T vectors of
width d. Neither is kept. Images are taken a few at a time, of S only the selected pixels survive (beta*L of a row), and
gradients flow through these alone. Values and gradients are those of the equations, not an approximation. For an image
and a text t:

    m = max_p S_p                             the hardest pixel
    r = sum_p w_p V_p,  h = cos(r, t)         the hardest region; w the softmax of S over its pixels
    dh/dV_p = w_p u + (dh/dS_p) t             with u = dh/dr = (t/|t| - h r/|r|) / |r|
    dh/dS_p = w_p u.V_p                       the softmax's mean drops out, for u.r = 0
"""

import torch
import torch.nn.functional as F

ENTRIES = 1 << 20  # of S at once: small enough for a CPU's cache, large enough for its threads
COLUMN = 4  # entries that `largest` looks at as one
EPSILON = 1e-12  # in place of the norm of a zero vector


def hard_negatives(pixels, texts, top):
    """The most similar pixel and region of every image for every text.

    pixels (B, L, d), texts (T, d): not normalised. top: how many pixels make a region. Returns (peak (B, T),
    max_p S[i, j, p]; region (B, T), cos(r_ij, t_j)). Differentiable once, in pixels and texts. Ties go to whichever
    `topk` keeps.
    """
    return _HardNegatives.apply(pixels, texts, top)


def pool(pixels, index, weights):
    """Regions: sum_p w_p V_p over the selected pixels. pixels (b, L, d); index, weights (b, T, top) -> (b, T, d)."""
    table, rows, weights = pixels.flatten(0, 1), _rows(index, pixels.shape[1]), weights.flatten(0, 1)
    return F.embedding_bag(rows.flatten(0, 1), table, per_sample_weights=weights, mode="sum").unflatten(0, index.shape[:2])


def spread(terms, index, length):
    """The transpose of `pool`: for each pixel, the sum of w v over the vectors v that selected it.

    terms: pairs of vectors (b, T, d), or (1, T, d) if those of all images, and weights (b, T, top), whose sums are added.
    index (b, T, top): the selected pixels. Returns (b, length, d).
    """
    b, count, top = index.shape
    rows = _rows(index, length).flatten()
    order = rows.int().argsort()  # by pixel
    start = F.pad(rows.bincount(minlength=b * length).cumsum(0), (1, 0))[:-1]
    total = None
    for vectors, weights in terms:
        who = order // top if len(vectors) == b else order // top % count
        summed = F.embedding_bag(who, vectors.flatten(0, 1), start, per_sample_weights=weights.flatten()[order], mode="sum")
        total = summed if total is None else total.add_(summed)
    return total.unflatten(0, (b, length))


def largest(scores, count):
    """As scores.topk(count), faster for few of many: the `count` largest lie in the `count` columns with the largest maxima.

    scores (..., L). Returns (values, indices), each (..., count), in descending order.
    """
    length = scores.shape[-1]
    if length % COLUMN or length < 2 * COLUMN * count:
        return scores.topk(count, dim=-1)
    grid = scores.unflatten(-1, (COLUMN, -1))  # ..., COLUMN, L / COLUMN
    columns = grid.amax(-2).topk(count, dim=-1, sorted=False).indices  # ..., count
    candidates = grid.gather(-1, columns.unsqueeze(-2).expand(*columns.shape[:-1], COLUMN, count)).flatten(-2)
    values, place = candidates.topk(count, dim=-1)
    return values, columns.gather(-1, place % count) + place // count * grid.shape[-1]


def _rows(index, length):
    """Indices into the pixels of an image, (b, ...), as indices into those of all b images."""
    first = torch.arange(len(index), device=index.device) * length
    return index + first.view(-1, *[1] * (index.ndim - 1))


def _chunks(images, entries):
    """Slices of so many images that about ENTRIES entries of S are alive, an image having `entries`."""
    size = max(1, ENTRIES // entries)
    return [slice(start, start + size) for start in range(0, images, size)]


class _HardNegatives(torch.autograd.Function):
    @staticmethod
    def forward(ctx, pixels, texts, top):
        images, length, _ = pixels.shape
        count = len(texts)
        text_norm = texts.norm(dim=-1).clamp(min=EPSILON)
        peak, region, region_norm = (pixels.new_empty(images, count) for _ in range(3))
        index = torch.empty(images, count, top, dtype=torch.int32, device=pixels.device)
        kept = pixels.new_empty(images, count, top)
        for i in _chunks(images, count * length):
            scores = texts @ pixels[i].transpose(1, 2)  # b, T, L
            kept[i], selected = largest(scores, top)  # b, T, top
            weights = kept[i].softmax(-1)
            region_norm[i] = pool(pixels[i], selected, weights).norm(dim=-1).clamp(min=EPSILON)
            region[i] = (weights * kept[i]).sum(-1) / (region_norm[i] * text_norm)  # r.t = sum_p w_p S_p
            index[i], peak[i] = selected, kept[i, :, 0]
        ctx.save_for_backward(pixels, texts, index, kept, region, region_norm)
        return peak, region

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, peak_gradient, region_gradient):
        pixels, texts, index, kept, region, region_norm = ctx.saved_tensors
        length = pixels.shape[1]
        text_norm = texts.norm(dim=-1, keepdim=True).clamp(min=EPSILON)  # T, 1
        pixels_gradient = torch.empty_like(pixels)
        texts_gradient = torch.zeros_like(texts) if ctx.needs_input_grad[1] else None
        for i in _chunks(len(pixels), len(texts) * length):
            selected, weights = index[i].long(), kept[i].softmax(-1)  # b, T, top
            with torch.enable_grad():
                variable = weights.detach().requires_grad_()
                regions = pool(pixels[i], selected, variable)  # b, T, d
            (along,) = torch.autograd.grad(regions, variable, regions)  # b, T, top: r.V_p
            regions = regions.detach()
            h, g = region[i][..., None], region_gradient[i][..., None]  # b, T, 1
            size = region_norm[i][..., None]
            pull = g * weights / size
            by_score = pull * (kept[i] / text_norm - h * along / size)  # of the loss by S
            by_score[..., 0] += peak_gradient[i]
            by_text, by_region = by_score + pull / text_norm, -pull * h / size  # dV_p = sum_j by_text t_j + by_region r_j
            pixels_gradient[i] = spread([(texts[None], by_text), (regions, by_region)], selected, length)
            if texts_gradient is not None:
                turn = g * (regions / size - h * texts / text_norm) / text_norm
                texts_gradient += (turn + pool(pixels[i], selected, by_score)).sum(0)
        return pixels_gradient, texts_gradient, None
