"""Products of one vector with a weight, as fast as a CPU core reads memory: decoding one row spends its time there.

A core fetches ahead of what is read, but not past the end of a page, so short rows, read one after another, come in
slowly. Eight that lie far apart, in eight pages, read at the same time, come in 1.2 to 1.5 times as fast (measured on a
Xeon, float32, widths 128 to 768; rows of a page and more gain nothing).
"""

import torch

PAGE_BYTES = 4096
CACHED_BYTES = 1 << 20  # a weight below this size may still be in a core's cache from the token before
FAR_ROWS = 8


class Matrix:
    """A weight W (d_out, d_in) as the right factor of x W^T. It holds views, no copy."""

    def __init__(self, weight: torch.Tensor) -> None:
        d_out, d_in = weight.shape
        self.transposed = weight.detach().t()
        row_bytes = d_in * weight.element_size()
        slow = row_bytes < PAGE_BYTES and d_out * row_bytes >= CACHED_BYTES and d_out % FAR_ROWS == 0
        # narrower numbers, or columns that follow one another, would be ten to fifty times as slow
        far = slow and weight.is_cpu and weight.dtype in (torch.float32, torch.float64) and weight.stride(1) == 1
        self.far = weight.detach().view(FAR_ROWS, -1, d_in).permute(1, 2, 0) if far else None

    def of(self, x: torch.Tensor) -> torch.Tensor:
        """x W^T, (..., d_out), of x (..., d_in) of at most three dimensions."""
        if self.far is None or x.numel() != x.size(-1):
            return x @ self.transposed
        products = torch.bmm(x.expand(len(self.far), 1, -1), self.far)
        return products.permute(1, 2, 0).reshape(*x.shape[:-1], -1)

    def added_to(self, y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """y + x W^T, (B, d_out), of x (B, d_in)."""
        if self.far is None or len(x) > 1:
            return torch.addmm(y, x, self.transposed)
        return y + self.of(x)
