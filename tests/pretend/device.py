"""A pretended accelerator on a machine without one.

Tensors claim the device `meta` and hold real values on the CPU, so autograd, optimisers and data-dependent
operations compute real numbers, while the dispatcher sees two devices. Recorded, by the function of medcl3d
that caused it:

read           the CPU waits for a value of the device: `.item()`, `.cpu()`, `nonzero`, a mask as an index
blocking copy  a copy to the device for which the CPU waits: its source is not pinned
copy           a copy from pinned memory, for which the CPU does not wait
mixed          an operation on tensors of both devices, which fails on a GPU
float64        an operation on many float64 numbers, which is slow on most GPUs

It cannot detect waiting inside kernels, NCCL, casts of autocast, or results that differ between runs.
"""

from __future__ import annotations

import contextlib
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

DEVICE = torch.device("meta")
READ, BLOCKING, COPY, MIXED, FLOAT64 = "read", "blocking copy", "copy", "mixed", "float64"
# Operations whose result, or its shape, the CPU needs. The checks of `inv` and the SVD wait inside.
READS = frozenset(
    (
        *("_local_scalar_dense", "is_nonzero", "equal", "nonzero", "masked_select", "bincount"),
        *("_unique2", "unique_consecutive", "unique_dim", "_linalg_check_errors", "_linalg_svd"),
    )
)
INDEXING = ("index", "index_put", "index_put_", "_index_put_impl_")
MANY = 1 << 12  # float64 numbers of an operation that is recorded
Event = tuple[str, str]
"""Kind, and the function of medcl3d: ``objectives.contrast.contrast``."""


class OnDevice(Tensor):
    """A tensor on the pretended device; `held` has its values."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> OnDevice:
        made = Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls,
            held.shape,
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device=DEVICE,
            requires_grad=False,
        )
        made.held = held
        return made  # type: ignore[no-any-return]

    def __init__(self, held: Tensor):
        pass

    def __repr__(self, **_: Any) -> str:  # type: ignore[override]
        return f"OnDevice({self.held})"

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        return _active().run(func, args, dict(kwargs or {}))

    def tolist(self) -> Any:
        _active().add(READ)
        return self.held.tolist()

    def numpy(self, *_: Any, **__: Any) -> Any:
        raise TypeError("a tensor of the device has no numpy array; copy it to the CPU first")

    __array__ = numpy  # type: ignore[assignment]


class Record:
    """The events of one use of the device, in steps: `next_step` begins a new one."""

    def __init__(self) -> None:
        self.steps: list[Counter[Event]] = [Counter()]
        self._pinned: list[Tensor] = []

    def next_step(self) -> None:
        """Count what follows in a new step."""
        self.steps.append(Counter())

    @property
    def total(self) -> Counter[Event]:
        """The events of all steps."""
        return sum(self.steps, Counter[Event]())

    def add(self, kind: str) -> None:
        """Count an event, with the function of medcl3d that caused it."""
        self.steps[-1][kind, place()] += 1

    def pin(self, tensor: Tensor) -> Tensor:
        """A copy that counts as pinned."""
        copy = tensor.clone()
        self._pinned.append(copy)  # kept, so that no other tensor gets its address
        return copy

    def is_pinned(self, tensor: Tensor) -> bool:
        """Whether a tensor is part of a pinned one."""
        address = tensor.untyped_storage().data_ptr()
        return any(one.untyped_storage().data_ptr() == address for one in self._pinned)

    def run(self, func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        """Execute an operation on the values, and record its events."""
        leaves = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        wanted = kwargs.get("device")
        target = None if wanted is None else torch.device(wanted).type
        here = any(isinstance(x, OnDevice) for x in leaves)
        if here:
            self._look(func, args, leaves, target)
        elif leaves and target == DEVICE.type:
            waits = not (kwargs.get("non_blocking") and all(self.is_pinned(x) for x in leaves))
            self.add(BLOCKING if waits else COPY)
        result = _values(func, args, kwargs)
        if not (target == DEVICE.type or (here and target != "cpu")) or not isinstance(
            result, Tensor | list | tuple
        ):
            return result
        known = {id(x.held): x for x in leaves if isinstance(x, OnDevice)}

        def wrapped(x: Any) -> Any:
            return known.get(id(x)) or OnDevice(x) if isinstance(x, Tensor) else x

        # An operation in place returns the tensor that it changed.
        return tree_map(lambda x: known[id(x)] if id(x) in known else wrapped(x), result)

    def _look(self, func: Any, args: Sequence[Any], leaves: Sequence[Tensor], target: str | None) -> None:
        """Record the events of an operation on tensors of the device."""
        name = func._schema.name.split("::")[1]
        if name in READS or target == "cpu" or (name == "repeat_interleave" and len(leaves) == len(args[:2])):
            self.add(READ)
        if name == "copy_" and isinstance(args[0], OnDevice) != isinstance(args[1], OnDevice):
            self.add(BLOCKING if isinstance(args[0], OnDevice) else READ)
        elif name in INDEXING:
            indices = [x for x in tree_leaves(args[1]) if isinstance(x, Tensor)]
            # One number behind a mask is a fill.
            fill = name != "index" and args[2].numel() == 1
            if any(x.dtype == torch.bool for x in indices) and not fill:
                self.add(READ)
            if any(not isinstance(x, OnDevice) for x in indices):
                self.add(BLOCKING)
        elif name != "_to_copy" and any(not isinstance(x, OnDevice) and x.dim() > 0 for x in leaves):
            self.add(MIXED)
        if any(x.dtype == torch.float64 and x.numel() >= MANY for x in leaves):
            self.add(FLOAT64)


def _values(func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """The result of an operation on the values."""
    args, kwargs = tree_map(lambda x: x.held if isinstance(x, OnDevice) else x, (tuple(args), kwargs))
    if kwargs.get("device") is not None:
        kwargs["device"] = torch.device("cpu")
    return func(*args, **kwargs)


class _Mode(TorchDispatchMode):
    """Sends operations that create tensors, or copy them to the device, to the record."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        return _active().run(func, args, dict(kwargs or {}))


_records: list[Record] = []


def _active() -> Record:
    return _records[-1] if _records else Record()


def place(outside: str = " ") -> str:
    """The innermost function of medcl3d on the stack, outside modules whose name begins with `outside`."""
    frame: Any = sys._getframe()
    while frame is not None:
        name = frame.f_globals.get("__name__", "")
        if name.startswith("medcl3d.") and not name.startswith(f"medcl3d.{outside}"):
            function = frame.f_code.co_qualname.replace(".<locals>", "")
            return f"{name.removeprefix('medcl3d.')}.{function}"
        frame = frame.f_back
    return "elsewhere"


@contextlib.contextmanager
def pretended_device() -> Iterator[Record]:
    """Within this context `DEVICE` is an accelerator; what happens on it is recorded."""
    import torch._dynamo  # noqa: F401  # every optimiser imports it; it needs the functions that are replaced here

    record = Record()
    _records.append(record)
    try:
        with contextlib.ExitStack() as stack:
            for owner, name, replacement in _replacements(record):
                stack.enter_context(mock.patch.object(owner, name, replacement))
            stack.enter_context(_Mode())
            yield record
    finally:
        _records.pop()


def _replacements(record: Record) -> list[tuple[Any, str, Any]]:
    """Functions of torch that construct tensors without the dispatcher, or refuse the device."""
    autocast, generator, randn = torch.autocast, torch.Generator, torch.randn
    tensor, as_tensor, new_tensor = torch.tensor, torch.as_tensor, Tensor.new_tensor

    def is_device(device: Any) -> bool:
        return device is not None and torch.device(device).type == DEVICE.type

    def autocast_here(device_type: str, *args: Any, **kwargs: Any) -> Any:
        if device_type == DEVICE.type:
            return contextlib.nullcontext()
        return autocast(device_type, *args, **kwargs)

    def tensor_here(data: Any, *args: Any, device: Any = None, **kwargs: Any) -> Any:
        made = tensor(data, *args, **kwargs)
        return made.to(device) if is_device(device) else made

    def new_tensor_here(self: Tensor, data: Any, dtype: Any = None, device: Any = None, **_: Any) -> Any:
        if isinstance(self, OnDevice) and device is None:
            return tensor_here(data, dtype=dtype or self.dtype, device=DEVICE)
        return new_tensor(self, data, dtype=dtype, device=device)

    def as_tensor_here(data: Any, dtype: Any = None, device: Any = None) -> Any:
        if isinstance(data, OnDevice):
            return data if dtype is None else data.to(dtype)
        made = as_tensor(data, dtype=dtype)
        return made.to(device) if is_device(device) else made

    def randn_here(*size: Any, generator: Any = None, device: Any = None, **kwargs: Any) -> Any:
        drawn = randn(*size, generator=generator, device=None if is_device(device) else device, **kwargs)
        return OnDevice(drawn) if is_device(device) else drawn  # drawn on the device, not copied

    def generator_here(device: Any = "cpu") -> Any:
        return generator("cpu" if is_device(device) else device)

    def enabled(device_type: str | None = None) -> bool:
        return False if device_type == DEVICE.type else real_enabled(device_type)

    real_enabled: Callable[[Any], bool] = torch.is_autocast_enabled
    return [
        (torch, "autocast", autocast_here),
        (torch, "is_autocast_enabled", enabled),
        (torch, "Generator", generator_here),
        (torch, "randn", randn_here),
        (torch, "tensor", tensor_here),
        (torch, "as_tensor", as_tensor_here),
        (Tensor, "new_tensor", new_tensor_here),
        (Tensor, "pin_memory", lambda self, *_: record.pin(self)),
    ]
