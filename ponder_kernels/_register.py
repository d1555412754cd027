"""Registration with torch.library, and gradients of any order by recomputation.

A kernel's host function is registered as ``torch.ops.ponder_kernels.NAME``: torch.compile then sees one node with a
known output shape. Its gradient is another registered function, so that compiled training launches both kernels.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor

NAMESPACE = "ponder_kernels"

P = ParamSpec("P")
T = TypeVar("T")


def register(schema: str, fake: Callable[..., Any]) -> Callable[[Callable[..., Any]], Any]:
    """Decorate a host function to become ``torch.ops.ponder_kernels.NAME``.

    Args:
        schema: ``NAME(Tensor x, float y) -> Tensor`` in torch's schema language.
        fake: allocates outputs of the right shape, dtype and strides without computing them.

    Returns:
        the registered operator, callable as the function was. Its outputs must not alias its inputs, and a gradient
        that is not wanted is an empty placeholder (see `unwanted`), for a schema has no optional output.
    """
    name, bracket, signature = schema.partition("(")

    def decorate(function: Callable[..., Any]) -> Any:
        operator = torch.library.custom_op(
            f"{NAMESPACE}::{name}", function, mutates_args=(), schema=bracket + signature
        )
        operator.register_fake(fake)
        return operator

    return decorate


class EagerOperator:
    """A host function with the interface of a registered operator, without the cost of torch.library's dispatch.

    For the CPU, where that cost shows. torch.compile and transforms do not know it.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function
        self._differentiable: Any = None

    def register_autograd(self, backward: Callable[..., Any], *, setup_context: Callable[..., None]) -> None:
        """As `torch.library.register_autograd`."""
        steps = {"forward": self._function, "setup_context": setup_context, "backward": backward}
        methods = {name: staticmethod(step) for name, step in steps.items()}
        self._differentiable = type(self._function.__name__, (torch.autograd.Function,), methods)

    def __call__(self, *arguments: Any) -> Any:
        return self._differentiable.apply(*arguments)


def gradient_buffers(
    inputs: Sequence[Tensor], wanted: Sequence[bool], allocate: Callable[..., Tensor] | None = None
) -> tuple[Tensor, ...]:
    """One contiguous tensor like each input whose gradient is wanted; a placeholder of no elements for the others."""
    allocate = torch.empty if allocate is None else allocate
    return tuple(
        allocate(x.shape if want else (0,), dtype=x.dtype, device=x.device)
        for x, want in zip(inputs, wanted, strict=True)
    )


def where_wanted(gradients: Sequence[Tensor], wanted: Sequence[bool]) -> tuple[Tensor | None, ...]:
    """The gradients, with None in the place of each that was not wanted."""
    return tuple(g if want else None for g, want in zip(gradients, wanted, strict=True))


def recomputed_gradients(
    reference: Callable[..., Tensor | Sequence[Tensor]],
    inputs: Sequence[Tensor | None],
    wanted: Sequence[bool],
    upstream: Sequence[Tensor | None],
) -> tuple[Tensor | None, ...]:
    """First derivatives of a torch formula as differentiable functions of the inputs and the upstream gradients.

    Args:
        reference: differentiable torch function of the inputs.
        inputs: its tensor arguments; optional ones may be None.
        wanted: for which of them a gradient is returned; None stands for the others.
        upstream: one gradient per output, None where the loss does not depend on it.
    """
    with torch.enable_grad():
        # Views, so that a tensor given for two arguments keeps two gradients.
        inputs = [None if x is None else x.view_as(x) for x in inputs]
        sources = [x for x, want in zip(inputs, wanted, strict=True) if want and x is not None]
        outputs = reference(*inputs)
        outputs = (outputs,) if isinstance(outputs, Tensor) else tuple(outputs)
        used = [(o, g) for o, g in zip(outputs, upstream, strict=True) if g is not None and o.requires_grad]
        found = torch.autograd.grad(
            [o for o, _ in used], sources, [g for _, g in used], create_graph=True, allow_unused=True
        )
    remaining = iter(found)
    return tuple(next(remaining) if want else None for want in wanted)


def link_gradient(
    operator: Any,
    backward: Callable[..., Sequence[Tensor]],
    reference: Callable[..., Tensor | Sequence[Tensor]],
    *,
    tensors: int,
    keep_outputs: bool = False,
) -> None:
    """Make a registered operator differentiable: first order by its kernel, every other order by its formula.

    A backward that is recorded itself (create_graph=True) differentiates `reference`, at the memory that needs; a plain
    one launches the kernel.

    Args:
        operator: takes `tensors` tensors (optional ones may be None), then options.
        backward: registered; takes the upstream gradients (None where there is none), the tensors, with `keep_outputs`
            the outputs, the options, and a list of which gradients are wanted; returns one gradient per tensor.
        reference: the formula, with the operator's arguments.
        tensors: number of leading tensor arguments.
        keep_outputs: whether `backward` takes the operator's outputs.
    """

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        outputs = () if not keep_outputs else (output,) if isinstance(output, Tensor) else output
        ctx.save_for_backward(*inputs[:tensors], *outputs)
        ctx.options = inputs[tensors:]
        ctx.set_materialize_grads(False)

    def gradients(ctx: Any, *upstream: Tensor | None) -> tuple[Tensor | None, ...]:
        wanted, options, saved = list(ctx.needs_input_grad[:tensors]), ctx.options, ctx.saved_tensors
        found: tuple[Tensor | None, ...]
        if all(g is None for g in upstream):
            found = (None,) * tensors
        elif torch.is_grad_enabled():
            found = recomputed_gradients(lambda *x: reference(*x, *options), saved[:tensors], wanted, upstream)
        else:
            found = where_wanted(backward(*upstream, *saved, *options, wanted), wanted)
        return *found, *(None for _ in options)

    operator.register_autograd(gradients, setup_context=setup_context)


def _widened(value: Any) -> Any:
    """Half-precision tensors as float32, inside (named) tuples and lists too."""
    if isinstance(value, Tensor):
        return value.float() if value.dtype in (torch.float16, torch.bfloat16) else value
    if isinstance(value, tuple | list):
        parts = [_widened(part) for part in value]
        return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
    return value


def keeps_float32(*half_allowed: str) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Decorate a public operator to compute in float32 under ``torch.autocast``.

    Ray quantities that autocast left in half precision (a decoder's output, say) become float32, and autocast is off
    inside: sample positions, opacities and sums along rays do not survive half precision.

    Args:
        half_allowed: names of the arguments that the operator takes in half precision as they are.
    """

    def decorate(operator: Callable[P, T]) -> Callable[P, T]:
        names = list(inspect.signature(operator).parameters)

        def widen(name: str, value: Any) -> Any:
            return value if name in half_allowed else _widened(value)

        @functools.wraps(operator)
        def wrapper(*args: P.args, **kwargs: P.kwargs) -> T:
            tensors = (v for v in (*args, *kwargs.values()) if isinstance(v, Tensor))
            first = next(tensors, None)
            device = "cpu" if first is None else first.device.type
            if device not in ("cpu", "cuda") or not torch.is_autocast_enabled(device):
                return operator(*args, **kwargs)
            widened = [widen(name, value) for name, value in zip(names, args, strict=False)]
            named = {name: widen(name, value) for name, value in kwargs.items()}
            with torch.autocast(device, enabled=False):
                return operator(*widened, **named)

        return wrapper

    return decorate
