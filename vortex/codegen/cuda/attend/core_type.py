"""In what type tensor cores multiply."""

from __future__ import annotations

from vortex.schedules.cuda_attend import AttendShape


class CoreType:
    """What follows for the kernels of a shape from the type of K and V, or of latent rows, in memory."""

    shape: AttendShape
    dtype: str
    """Of queries and output."""

    @property
    def narrow(self) -> bool:
        """Whether the pools are fp8, which becomes f16 on the way to the tensor cores."""
        return self.shape.kv_bytes == 1

    @property
    def core(self) -> str:
        """The element type that the tensor cores multiply."""
        return "float16" if self.narrow else self.dtype
