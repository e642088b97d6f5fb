"""Memory-efficient mining: the pixels and regions that each text selects in each image, without storing S (MGCA §3.2, Eq. 2-7).

Images are processed a few at a time, and only the selected pixels of S are kept: alpha*L for an image's own text, beta*L for the others.
Gradients flow through these alone, into one buffer, and not to texts. Both are exact. For an image and a text t that it is contrasted with:

    m = max_p S_p                             the hardest pixel
    r = sum_p w_p V_p,  h = cos(r, t)         the hardest region; w is the softmax of S over its pixels
    dh/dV_p = w_p u + (dh/dS_p) t             with u = dh/dr = (t/|t| - h r/|r|) / |r|
    dh/dS_p = w_p u.V_p                       the mean term of the softmax vanishes because u.r = 0

and for its own text, with the gradient g of the object o = sum_p w_p V_p: dV_p = w_p g + w_p (g.V_p - g.o) t
"""

import torch
import torch.nn.functional as F

ENTRIES = 1 << 22  # entries of S or V processed at once: 16 MiB of float32
COLUMN = 4  # entries per column in `largest`
EPSILON = 1e-12  # lower bound of norms, for zero vectors


def mine(pixels, texts, own, object_top, rank, region_top):
    """Mine a batch. Returns, once differentiable with respect to pixels and with ties broken as by `topk`:
    objects (B, d), o_i, pooled over the top pixels for an image's own text; positive (B,), the similarity of the pixel of a
    rank among them; peak (B, T), max_p S[i, j, p]; region (B, T), cos(r_ij, t_j). pixels (B, L, d), texts (T, d): not
    normalised. own (B,): index of each image's own text. object_top: pixels per object. rank: of the positive pixel,
    1 (the most similar) to object_top. region_top: pixels per region; at 0, peak and region are zeros."""
    with torch.autocast(pixels.device.type, enabled=False):  # autocast would lower the precision of the selection
        return _Mine.apply(pixels, texts, own, object_top, rank, region_top)


def paired_similarity(pixels, texts):
    """Similarity S of each image to its own text: pixels (b, L, d), texts (b, d) -> (b, L). Eq. 2."""
    return (pixels @ texts[..., None])[..., 0]


def pool(pixels, index, weights):
    """Pool regions: sum_p w_p V_p over the selected pixels. pixels (b, L, d); index, weights (b, T, top) -> (b, T, d)."""
    rows, weights = _rows(index, pixels.shape[1]).flatten(0, 1), weights.flatten(0, 1)
    return F.embedding_bag(rows, pixels.flatten(0, 1), per_sample_weights=weights, mode="sum").unflatten(0, index.shape[:2])


def dots(pixels, index, weights, vectors=None):
    """Regions (b, T, d) as in `pool`, and the dot products (b, T, top) of selected pixels with vectors (b, T, d), or with the regions."""
    with torch.enable_grad():  # these dot products are the gradient of `pool` w.r.t. its weights; no copy of the pixels is needed
        variable = weights.detach().requires_grad_()
        regions = pool(pixels.detach(), index, variable)
    (products,) = torch.autograd.grad(regions, variable, regions.detach() if vectors is None else vectors)
    return regions.detach(), products


def spread(vectors, which, weights, index, length):
    """The transpose of `pool`: for each pixel, the sum of w v over the vectors v that selected it. Returns (b, length, d). vectors: (N, d).
    which (b, T, n): n rows of vectors for each image and text. weights (b, T, n, top): theirs. index (b, T, top): selected pixels."""
    n, top = weights.shape[-2:]
    rows, order = _rows(index, length).flatten().int().sort()  # by pixel
    start = torch.searchsorted(rows, torch.arange(len(index) * length, dtype=rows.dtype, device=rows.device))
    who = which.flatten(0, 1)[order // top].flatten()
    what = weights.transpose(-2, -1).reshape(-1, n)[order].flatten()
    return F.embedding_bag(who, vectors, start * n, per_sample_weights=what, mode="sum").unflatten(0, (-1, length))


def largest(scores, count):
    """Faster scores.topk(count) for count << L: the `count` largest entries lie in the `count` columns with the largest maxima."""
    length = scores.shape[-1]
    if length % COLUMN or length < 2 * COLUMN * count:
        return scores.topk(count, dim=-1)
    grid = scores.unflatten(-1, (COLUMN, -1))  # ..., COLUMN, L / COLUMN
    columns = grid.amax(-2).topk(count, dim=-1, sorted=False).indices  # ..., count
    candidates = grid.gather(-1, columns.unsqueeze(-2).expand(*columns.shape[:-1], COLUMN, count)).flatten(-2)
    values, place = candidates.topk(count, dim=-1)
    return values, columns.gather(-1, place % count) + place // count * grid.shape[-1]


def _rows(index, length):
    """Pixel indices within each image, (b, T, top), as indices into the flattened pixels of all b images."""
    return index + torch.arange(len(index), device=index.device)[:, None, None] * length


def _chunks(pixels, texts):
    """Slices of images that have about ENTRIES numbers in S or V."""
    size = max(1, ENTRIES // (pixels.shape[1] * max(texts.shape)))
    return [slice(start, start + size) for start in range(0, len(pixels), size)]


class _Mine(torch.autograd.Function):
    @staticmethod
    def forward(ctx, pixels, texts, own, object_top, rank, region_top):
        images, _, width = pixels.shape
        objects, region = pixels.new_empty(images, width), pixels.new_zeros(images, len(texts))
        own_kept, kept = pixels.new_empty(images, 1, object_top), pixels.new_empty(images, len(texts), region_top)
        own_index, index = (torch.empty_like(similarities, dtype=torch.int32) for similarities in (own_kept, kept))
        for i in _chunks(pixels, texts):
            if region_top:
                scores = texts @ pixels[i].transpose(1, 2)  # b, T, L
                kept[i], selected = largest(scores, region_top)  # b, T, top
                paired = scores[torch.arange(len(scores), device=scores.device), own[i]]  # b, L
                del scores
                index[i], weights = selected, kept[i].softmax(-1)
                norms = _norms(pool(pixels[i], selected, weights)) * _norms(texts)
                region[i] = (weights * kept[i]).sum(-1) / norms  # r.t = sum_p w_p S_p
            else:
                paired = paired_similarity(pixels[i], texts[own[i]])
            own_kept[i], selected = paired[:, None].topk(object_top, dim=-1)  # b, 1, top
            own_index[i] = selected
            objects[i] = pool(pixels[i], selected, own_kept[i].softmax(-1))[:, 0]
        ctx.save_for_backward(pixels, texts, own, objects, own_index, own_kept, index, kept, region)
        ctx.rank = rank
        peak = kept[..., 0].clone() if region_top else torch.zeros_like(region)
        return objects, own_kept[:, 0, rank - 1].clone(), peak, region

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, objects_gradient, positive_gradient, peak_gradient, region_gradient):
        pixels, texts, own, objects, own_index, own_kept, index, kept, region = ctx.saved_tensors
        length, text_norm = pixels.shape[1], _norms(texts)[:, None]  # T, 1
        pixels_gradient = torch.empty_like(pixels)
        for i in _chunks(pixels, texts):
            others = pixels.new_zeros(1, 1, 1)
            if kept.shape[-1]:
                selected, weights = index[i].long(), kept[i].softmax(-1)  # b, T, top
                regions, along = dots(pixels[i], selected, weights)  # along (b, T, top): r.V_p
                h, g, size = region[i][..., None], region_gradient[i][..., None], _norms(regions)[..., None]  # b, T, 1
                pull = g * weights / size
                by_score = pull * (kept[i] / text_norm - h * along / size)  # gradient with respect to S
                by_score[..., 0] += peak_gradient[i]
                by_text, by_region = by_score + pull / text_norm, -pull * h / size  # dV_p = sum_j by_text t_j + by_region r_j
                vectors = torch.cat([texts, regions.flatten(0, 1)])  # T + b*T, d
                rows = torch.arange(len(texts), len(vectors), device=texts.device).view(weights.shape[:2])  # b, T
                which = torch.stack([rows % len(texts), rows], 2)
                others = spread(vectors, which, torch.stack([by_text, by_region], 2), selected, length)  # b, L, d
            selected, weights = own_index[i].long(), own_kept[i].softmax(-1)  # b, 1, top
            g, o = objects_gradient[i][:, None], objects[i][:, None]  # b, 1, d
            _, along = dots(pixels[i], selected, weights, g)  # b, 1, top: g.V_p
            by_score = weights * (along - (g * o).sum(-1, keepdim=True))
            by_score[..., ctx.rank - 1] += positive_gradient[i][:, None]
            share = pixels.new_zeros(len(g), 2, length)  # dV_p = w_p g + by_score_p t; 0 where a pixel is not selected
            share.scatter_(2, selected.expand(-1, 2, -1), torch.cat([weights, by_score], 1))
            own_texts = torch.stack([g[:, 0], texts[own[i]]], 1)
            torch.baddbmm(others, share.transpose(1, 2), own_texts, out=pixels_gradient[i])
        return pixels_gradient, None, None, None, None, None


def _norms(vectors):
    """Norms of vectors (..., d), at least EPSILON."""
    return vectors.norm(dim=-1).clamp(min=EPSILON)
