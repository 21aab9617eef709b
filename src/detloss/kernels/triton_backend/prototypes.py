"""Masks that are linear in prototypes on CUDA, compared inside the boxes of their objects.

Two kernels, both of which predict a tile of logits and forget it. The first has a program for some rows of an object and a
piece of its window: it adds up loss and gradient of the rows; what the pieces give is added in order. The second has a program
for some pixels of an image: it goes through the objects whose windows meet them and adds up the gradient of the prototypes.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from detloss.kernels.prototypes import PrototypeMasks
from detloss.kernels.triton_backend.sigmoid_cells import soft_cell
from detloss.kernels.triton_backend.sums import finished

__all__ = ["OPS", "refuses", "run"]

OPS = frozenset({PrototypeMasks.op})
MOST_PROTOTYPES = 256
MOST_PIECES = 16  # of a window; the gradient of the rows exists once for each
LEAST_PIECE = 256  # pixels, unless the window has less
ROWS = 16  # of an object at once
ROW_CELLS, MAP_CELLS = 2048, 1024  # of prototypes at once
CROP = tl.constexpr(9)  # numbers of a crop


@triton.jit
def _targets(truth: tl.tensor, at: tl.tensor, there: tl.tensor, number: tl.tensor) -> tl.tensor:
    """Whether the mask has the number of the object or, where that is 0, the mask itself."""
    value = tl.load(truth + at, mask=there, other=0).to(tl.float32)
    return tl.where(number == 0, value, tl.where(value == number.to(tl.float32), 1.0, 0.0))


@triton.jit
def _cells(row: tl.tensor, maps: tl.tensor, target: tl.tensor, counts: tl.tensor) -> tl.tensor:
    """Loss and slope [rows, pixels] of the logits row[rows, K] · maps[K, pixels], 0 where they do not count."""
    x = tl.dot(row, maps, input_precision="ieee")
    y = tl.zeros_like(x) + target[None, :]
    loss, slope = soft_cell(x, y, 1.0, 1.0, 1.0, "focal", 0.0, 0.0, False)
    return tl.where(counts, loss, 0.0), tl.where(counts, slope, 0.0)


@triton.jit
def prototype_rows(
    rows: tl.tensor, maps: tl.tensor, truth: tl.tensor, weight: tl.tensor, crops: tl.tensor, partial: tl.tensor,
    by_rows: tl.tensor, count: tl.tensor, height: tl.tensor, width: tl.tensor, blocks: tl.tensor, least: tl.tensor,
    K: tl.constexpr, KP: tl.constexpr, BR: tl.constexpr, BP: tl.constexpr, PIECES: tl.constexpr,
) -> None:  # fmt: skip
    """Loss, and gradient by_rows[PIECES, count, K], of BR rows of an object in a piece of its window."""
    piece, number = tl.program_id(1), tl.program_id(0) // blocks
    crop = crops + number * CROP
    last, y1, x1 = tl.load(crop + 2).to(tl.int32), tl.load(crop + 3).to(tl.int32), tl.load(crop + 5).to(tl.int32)
    wide = tl.load(crop + 6).to(tl.int32) - x1
    pixels = (tl.load(crop + 4).to(tl.int32) - y1) * wide
    length = tl.cdiv(tl.maximum(tl.cdiv(pixels, PIECES), least), BP) * BP
    begin = piece * length
    end = tl.minimum(begin + length, pixels)
    first = tl.load(crop + 1).to(tl.int32) + (tl.program_id(0) % blocks) * BR
    if (begin < end) & (first < last):
        name, plane = tl.load(crop + 8), height * width
        maps += tl.load(crop).to(tl.int64) * K * plane
        truth += tl.load(crop + 7).to(tl.int64) * plane
        k, r = tl.arange(0, KP), first + tl.arange(0, BR)
        at_row = r.to(tl.int64)[:, None] * K + k[None, :]
        own = (r < last)[:, None] & (k < K)[None, :]
        row = tl.load(rows + at_row, mask=own, other=0.0)
        total, by_row = tl.zeros([BR], tl.float32), tl.zeros([BR, KP], tl.float32)
        for start in range(begin, end, BP):
            p = start + tl.arange(0, BP)
            there = p < end
            at = (y1 + p // wide) * width + x1 + p % wide
            tile = tl.load(maps + (k[:, None] * plane + at[None, :]), mask=(k < K)[:, None] & there[None, :], other=0.0)
            target = _targets(truth, at, there, name)
            loss, slope = _cells(row, tile, target, (r < last)[:, None] & there[None, :])
            total += tl.sum(loss, 1)
            if by_rows is not None:
                by_row += tl.dot(slope, tl.trans(tile), input_precision="ieee")
        w = tl.load(weight + number)
        tl.store(partial + (tl.program_id(0) * PIECES + piece), w * tl.sum(total, 0))
        if by_rows is not None:
            tl.store(by_rows + (piece.to(tl.int64) * count * K + at_row), w * by_row, mask=own)


@triton.jit
def prototype_maps(
    rows: tl.tensor, maps: tl.tensor, truth: tl.tensor, weight: tl.tensor, crops: tl.tensor, of_image: tl.tensor, out: tl.tensor,
    height: tl.tensor, width: tl.tensor, K: tl.constexpr, KP: tl.constexpr, BR: tl.constexpr, BY: tl.constexpr, BX: tl.constexpr,
) -> None:  # fmt: skip
    """Gradient [K, BY · BX] of the prototypes of an image in a tile; crops of image b are those from of_image[b] on."""
    columns, lines = tl.cdiv(width, BX), tl.cdiv(height, BY)
    image = tl.program_id(0) // (columns * lines)
    top, left = tl.program_id(0) // columns % lines * BY, tl.program_id(0) % columns * BX
    k, p = tl.arange(0, KP), tl.arange(0, BY * BX)
    y, x, plane = top + p // BX, left + p % BX, height * width
    at = y * width + x
    tile = (k < K)[:, None] & ((y < height) & (x < width))[None, :]
    places = image.to(tl.int64) * K * plane + (k[:, None] * plane + at[None, :])
    own = tl.load(maps + places, mask=tile, other=0.0)
    total = tl.zeros([KP, BY * BX], tl.float32)
    for number in range(tl.load(of_image + image).to(tl.int32), tl.load(of_image + image + 1).to(tl.int32)):
        crop = crops + number * CROP
        y1, y2 = tl.load(crop + 3).to(tl.int32), tl.load(crop + 4).to(tl.int32)
        x1, x2 = tl.load(crop + 5).to(tl.int32), tl.load(crop + 6).to(tl.int32)
        if (y1 < top + BY) & (y2 > top) & (x1 < left + BX) & (x2 > left):
            inside = (y >= y1) & (y < y2) & (x >= x1) & (x < x2)
            target = _targets(truth + tl.load(crop + 7).to(tl.int64) * plane, at, inside, tl.load(crop + 8))
            w, last = tl.load(weight + number), tl.load(crop + 2).to(tl.int32)
            for first in range(tl.load(crop + 1).to(tl.int32), last, BR):
                r = first + tl.arange(0, BR)
                mask = (r < last)[:, None] & (k < K)[None, :]
                row = tl.load(rows + (r.to(tl.int64)[:, None] * K + k[None, :]), mask=mask, other=0.0)
                _, slope = _cells(row, own, target, (r < last)[:, None] & inside[None, :])
                by_tile = tl.dot(tl.trans(row), w * slope, input_precision="ieee")
                total += tl.where(inside[None, :], by_tile, 0.0)
    tl.store(out + places, total, mask=tile)


def refuses(masks: PrototypeMasks) -> str | None:
    """Calls in another dtype than fp32, with parts elsewhere, or larger than the kernels count are not taken."""
    device, (_, count, height, width) = masks.pred.device, masks.prototypes.shape
    for x in (masks.coefficients, masks.prototypes):
        if x.dtype != torch.float32:
            return f"{str(x.dtype).removeprefix('torch.')} masks"
    if masks.prototypes.device != device or masks.masks.device != device:
        return "prototypes or masks on another device than the coefficients"
    if masks.crops.device.type != "cpu":
        return f"crops on {masks.crops.device.type!r}, not on the CPU"
    if count > MOST_PROTOTYPES:
        return f"{count} prototypes, more than {MOST_PROTOTYPES}"
    return "prototypes of more than 2^31 numbers" if count * height * width >= 2**31 else None


def _tables(masks: PrototypeMasks) -> tuple[Tensor, Tensor]:
    """Crops ``[G, 9]``, and the first of each image and their number ``[B + 1]``, on the device.

    They go there in one copy from pinned memory, for which the host does not wait.
    """
    crops, device = masks.crops, masks.pred.device
    table = torch.cat((crops.flatten(), masks.first_crops()))
    if device.type == "cuda":
        table = table.pin_memory().to(device, non_blocking=True)
    return table[: crops.numel()].view(-1, 9), table[crops.numel() :]


def _pixels(padded: int, cells: int) -> int:
    """Pixels of a tile of prototypes: a product of matrices takes 16 or more."""
    return max(min(cells // padded, 64), 16)


def run(masks: PrototypeMasks, need_grad: bool) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """The sum (0-dim), and the gradients of coefficients and of prototypes; see :class:`PrototypeMasks`.

    Every row belongs to one crop. The host reads the crops, which it has, and does not wait for the device.
    """
    rows, maps, truth = (x.detach().contiguous() for x in (masks.coefficients, masks.prototypes, masks.masks))
    images, count, height, width = maps.shape
    most = int((masks.crops[:, 2] - masks.crops[:, 1]).max()) if len(masks.crops) else 0
    if most <= 0 or not maps.numel():
        zeros = [torch.zeros_like(x) if need_grad else None for x in (rows, maps)]
        return rows.new_zeros(()), zeros[0], zeros[1]
    crops, of_image = _tables(masks)
    weight = masks.weight.to(rows.device, torch.float32, non_blocking=True).contiguous()
    blocks = triton.cdiv(most, ROWS)
    partial = rows.new_zeros(len(crops) * blocks * MOST_PIECES)
    parts = rows.new_zeros(MOST_PIECES, *rows.shape) if need_grad else None
    padded = max(triton.next_power_of_2(count), 16)
    shape = {"K": count, "KP": padded, "BR": ROWS, "num_warps": 4 if padded < 128 else 8}
    prototype_rows[(len(crops) * blocks, MOST_PIECES)](
        rows, maps, truth, weight, crops, partial, parts, len(rows), height, width, blocks, LEAST_PIECE,
        BP=_pixels(padded, ROW_CELLS), PIECES=MOST_PIECES, **shape,
    )  # fmt: skip
    total = finished(partial, None, 1.0)
    if parts is None:
        return total, None, None
    by_maps = torch.empty_like(maps)
    lines, columns = _pixels(padded, MAP_CELLS) // 8, 8
    prototype_maps[(images * triton.cdiv(height, lines) * triton.cdiv(width, columns),)](
        rows, maps, truth, weight, crops, of_image, by_maps, height, width, BY=lines, BX=columns, **shape
    )
    return total, parts.sum(0), by_maps
