"""Chains of affine layers with an activation between them: value, gradient and second-order backward in closed form.

PonderV2's decoders add a linear map of their input in front of every layer. Wherever no activation separates two linear
maps they are multiplied out, which leaves, for an input z::

    x_1 = A_1 z + a_1,   h_l = act(x_l),   x_{l+1} = B_l h_l + A_{l+1} z + a_{l+1}

The SDF is the first row of the last x. Its activation is softplus with sharpness beta; in the scaled variables
``y = beta x`` and ``beta h`` that is softplus with sharpness 1, so `scaled` moves beta into the weights once per step.

Per sample ``q = sigmoid(-y)`` and ``log q`` are kept, for ``h = softplus(y) = -log q`` and its derivative is ``1 - q``:
two passes over memory make both. A product with the derivatives is that with q taken from a sum of weights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ponder_kernels import _check
from ponder_kernels._constants import SOFTPLUS_BETA, SOFTPLUS_THRESHOLD
from ponder_kernels._workspace import Workspace

# Below this sigmoid(x) in float32 soon is denormal, which a CPU handles many times slower, and then 0. To rounding,
# log sigmoid(x) is x long before.
_SMALLEST = -80.0


class Layer(NamedTuple):
    """One affine layer of a chain: ``previous h + inputs z + bias``; O outputs.

    Attributes:
        previous: [O, K] on the activation of the layer before; None on the first layer.
        inputs: [O, I] on the chain's input.
        bias: [O].
    """

    previous: Tensor | None
    inputs: Tensor
    bias: Tensor


Chain = tuple[Layer, ...]


class Hidden(NamedTuple):
    """Negative scaled activations log q = -h of every hidden layer, [M, K_l] each, and q = 1 - dh/dy where wanted."""

    logs: list[Tensor]
    gates: list[Tensor]


def check_chain(name: str, chain: Sequence[Layer], inputs: int) -> None:
    """Require layers whose widths fit: `inputs` columns each, the previous layer's rows as `previous` columns.

    Raises:
        TypeError, ValueError: naming the layer's tensor.
    """
    if not chain:
        raise ValueError(f"{name}: expected at least one layer, got none")
    width = None
    for number, layer in enumerate(chain):
        sizes = {"I": inputs}
        where = f"{name}[{number}]"
        _check.shape(f"{where}.inputs", _check.floating(f"{where}.inputs", layer.inputs), "O I", sizes)
        _check.shape(f"{where}.bias", _check.floating(f"{where}.bias", layer.bias), "O", sizes)
        if (layer.previous is None) != (number == 0):
            expected = "None" if number == 0 else "a tensor"
            raise ValueError(f"{where}.previous: expected {expected}")
        if layer.previous is not None:
            previous = _check.floating(f"{where}.previous", layer.previous)
            _check.shape(f"{where}.previous", previous, "O K", {**sizes, "K": width or 0})
        width = sizes["O"]


def flatten(tree: Any) -> list[Tensor]:
    """Tensors of nested tuples in order; None is left out."""
    if tree is None:
        return []
    if isinstance(tree, Tensor):
        return [tree]
    return [leaf for branch in tree for leaf in flatten(branch)]


def rebuild(tree: Any, leaves: Iterator[Tensor]) -> Any:
    """The same nested tuples with other tensors, taken from `leaves` in order."""
    if tree is None:
        return None
    if isinstance(tree, Tensor):
        return next(leaves)
    branches = [rebuild(branch, leaves) for branch in tree]
    return type(tree)(*branches) if hasattr(tree, "_fields") else tuple(branches)


def map_tensors(tree: Any, function: Callable[[Tensor], Tensor]) -> Any:
    """The same nested tuples with `function` of every tensor."""
    return rebuild(tree, iter([function(leaf) for leaf in flatten(tree)]))


def scaled(chain: Sequence[Layer]) -> Chain:
    """The SDF chain in scaled variables (see the module); differentiable."""
    *hidden, last = chain
    grown = [Layer(layer.previous, layer.inputs * SOFTPLUS_BETA, layer.bias * SOFTPLUS_BETA) for layer in hidden]
    through = None if last.previous is None else last.previous / SOFTPLUS_BETA
    return (*grown, Layer(through, last.inputs, last.bias))


def negative(layer: Layer, z: Tensor, log: Tensor | None, out: Tensor) -> Tensor:
    """``out = -(previous h + inputs z + bias)``, where `log` is -h."""
    # addmm would write the bias first and read it again, which takes longer than to take it off in place.
    torch.mm(z, -layer.inputs.T, out=out)
    if layer.previous is not None and log is not None:
        out.addmm_(log, layer.previous.T)
    return out.sub_(layer.bias)


def log_sigmoid(x: Tensor, log: Tensor, gate: Tensor | None) -> None:
    """log sigmoid(x) = -softplus(-x) into `log` and sigmoid(x), one minus its derivative, into `gate`.

    The logarithm of the rounded sigmoid: log1p is many times slower on a CPU. The error is that of one rounding at 1.
    """
    gate = torch.sigmoid(x, out=log if gate is None else gate)
    smallest = _smallest(x)
    # A GPU is not waited for.
    if x.device.type == "cpu" and (x.numel() == 0 or bool(x.amin() >= smallest)):
        torch.log(gate, out=log)
        return
    beyond = x < smallest
    gate.masked_fill_(beyond, 0)
    torch.log(gate, out=log)
    torch.where(beyond, x, log, out=log)


def exp_of(log: Tensor, gate: Tensor) -> Tensor:
    """What `log_sigmoid` makes besides `log`, in `gate`."""
    smallest = _smallest(log)
    torch.clamp_min(log, smallest, out=gate).exp_()
    return gate.masked_fill_(log < smallest, 0) if log.dtype == torch.float64 else gate


def _smallest(x: Tensor) -> float:
    # Above its threshold torch's softplus is the identity. Float32 cannot tell; float64 follows it.
    return -SOFTPLUS_THRESHOLD if x.dtype == torch.float64 else _SMALLEST


def activate(chain: Chain, z: Tensor, work: Workspace, gates: bool = True) -> Hidden:
    """Hidden activations of a scaled SDF chain at inputs z [M, I]."""
    out = Hidden([], [])
    rows = z.shape[0]
    log = None
    for number, layer in enumerate(chain[:-1]):
        width = layer.bias.shape[0]
        x = negative(layer, z, log, work("chain x", rows, width))
        log = work(f"chain log{number}", rows, width)
        gate = work(f"chain gate{number}", rows, width) if gates else None
        log_sigmoid(x, log, gate)
        out.logs.append(log)
        if gate is not None:
            out.gates.append(gate)
    return out


def distance(chain: Chain, z: Tensor, hidden: Hidden) -> Tensor:
    """The SDF [M]: the first row of the last layer."""
    last = chain[-1]
    sdf = torch.addmv(last.bias[0], z, last.inputs[0])
    if last.previous is not None:
        sdf.addmv_(hidden.logs[-1], last.previous[0], alpha=-1)
    return sdf


class Slopes(NamedTuple):
    """Derivatives of the SDF: by the input z [M, I]; by y (u) and h (v) of every hidden layer but the last."""

    z: Tensor
    u: list[Tensor]
    v: list[Tensor]


class LastHidden(NamedTuple):
    """What multiplies the slopes of the last hidden layer: all samples share its v, so it is put into the weights."""

    inputs: Tensor
    previous: Tensor | None


def last_hidden(chain: Chain) -> LastHidden:
    """Rows of the last hidden layer times the weights of the SDF on them."""
    layer, through = chain[-2], chain[-1].previous
    assert through is not None
    v = through[0].unsqueeze(1)
    return LastHidden(v * layer.inputs, None if layer.previous is None else v * layer.previous)


def input_gradient(chain: Chain, hidden: Hidden, rows: int, work: Workspace) -> Slopes:
    """d sdf / d z by the chain rule from the last layer to the first."""
    last, count = chain[-1], len(chain) - 1
    z = work("chain g", rows, last.inputs.shape[1])
    if count == 0:
        return Slopes(z.copy_(last.inputs[0].expand_as(z)), [], [])
    top, gate = last_hidden(chain), hidden.gates[-1]
    torch.mm(gate, -top.inputs, out=z).add_(last.inputs[0] + top.inputs.sum(0))
    u: list[Tensor] = [z] * (count - 1)
    v: list[Tensor] = [z] * (count - 1)
    for number in reversed(range(count - 1)):
        through = top.previous if number == count - 2 else chain[number + 1].previous
        assert through is not None
        v[number] = work(f"chain v{number}", rows, through.shape[1])
        if number == count - 2:
            torch.addmm(through.sum(0), gate, through, alpha=-1, out=v[number])
        else:
            torch.mm(u[number + 1], through, out=v[number])
        out = work(f"chain u{number}", *v[number].shape)
        u[number] = torch.addcmul(v[number], v[number], hidden.gates[number], value=-1, out=out)
        z.addmm_(u[number], chain[number].inputs)
    return Slopes(z, u, v)


class ChainBar(NamedTuple):
    """Upstream derivatives of a chain: by d sdf / d z [M, I]; by z [M, I] and the last h [M, K] in all other ways."""

    gradient: Tensor
    z: Tensor
    hidden: Tensor


def value_backward(chain: Chain, z: Tensor, hidden: Hidden, sdf_bar: Tensor, out: Chain) -> tuple[Tensor, Tensor]:
    """Add the derivatives of the SDF by the last layer to `out`; return those by z [M, I] and the last h [M, K]."""
    last, last_out = chain[-1], out[-1]
    last_out.inputs[0].addmv_(z.T, sdf_bar)
    last_out.bias[0].add_(sdf_bar.sum())
    z_bar = torch.outer(sdf_bar, last.inputs[0])
    if last.previous is None or last_out.previous is None:
        return z_bar, z_bar[:, :0]
    last_out.previous[0].addmv_(hidden.logs[-1].T, sdf_bar, alpha=-1)
    return z_bar, torch.outer(sdf_bar, last.previous[0])


def chain_backward(
    chain: Chain, z: Tensor, hidden: Hidden, slopes: Slopes, bar: ChainBar, out: Chain, work: Workspace
) -> Tensor:
    """Add the derivatives by every weight but those of the SDF's value to `out`; return that by z [M, I] (in `bar.z`).

    First the closed-form gradient is run backwards (front to back of the chain), which is what a second backward pass
    through autograd would compute; then the value. `slopes.u` and `bar` are overwritten.
    """
    rows, count = z.shape[0], len(chain) - 1
    out[-1].inputs[0].add_(bar.gradient.sum(0))
    if count == 0:
        return bar.z
    curvatures = []
    v_bar = None
    for number in range(count - 1):
        layer, layer_out = chain[number], out[number]
        gate, u = hidden.gates[number], slopes.u[number]
        layer_out.inputs.addmm_(u.T, bar.gradient)
        u_bar = torch.mm(bar.gradient, layer.inputs.T, out=work(f"chain ubar{number}", *gate.shape))
        if layer.previous is not None and layer_out.previous is not None and v_bar is not None:
            u_bar.addmm_(v_bar, layer.previous.T)
            layer_out.previous.addmm_(u.T, v_bar)
        # u = s v, s = 1 - q: the derivative by v goes on, that by s becomes one by y, with s' = s q; u is done with.
        v_bar = torch.addcmul(u_bar, u_bar, gate, value=-1, out=u)
        curvatures.append(torch.mul(v_bar, slopes.v[number], out=u_bar))
    curvatures.append(_last_slopes_backward(chain, hidden.gates[-1], bar.gradient, v_bar, out, work))
    h_bar = bar.hidden
    for number in reversed(range(count)):
        # y_bar = s h_bar + q s v u_bar.
        y_bar = torch.lerp(h_bar, curvatures[number], hidden.gates[number], out=curvatures[number])
        layer, layer_out = chain[number], out[number]
        layer_out.inputs.addmm_(y_bar.T, z)
        layer_out.bias.add_(y_bar.sum(0))
        bar.z.addmm_(y_bar, layer.inputs)
        if layer.previous is not None and layer_out.previous is not None:
            layer_out.previous.addmm_(y_bar.T, hidden.logs[number - 1], alpha=-1)
            h_bar = torch.mm(y_bar, layer.previous, out=work(f"chain hbar{number}", rows, layer.previous.shape[1]))
    return bar.z


def _last_slopes_backward(
    chain: Chain, gate: Tensor, gradient_bar: Tensor, v_bar: Tensor | None, out: Chain, work: Workspace
) -> Tensor:
    """The backward of the last hidden layer's part in `input_gradient`: returns s v u_bar [M, K].

    With t = s^T [gradient_bar | v_bar], [K, *], the derivative by its rows is v t and that by v the sum of rows * t.
    """
    layer, layer_out, through, through_out = chain[-2], out[-2], chain[-1].previous, out[-1].previous
    assert through is not None and through_out is not None
    top, v = last_hidden(chain), through[0].unsqueeze(1)
    turned = torch.addmm(gradient_bar.sum(0), gate.T, gradient_bar, alpha=-1)
    layer_out.inputs.addcmul_(v, turned)
    by_v = (layer.inputs * turned).sum(1)
    found = torch.mm(gradient_bar, top.inputs.T, out=work("chain last ubar", *gate.shape))
    if v_bar is not None and top.previous is not None and layer.previous is not None and layer_out.previous is not None:
        turned = torch.addmm(v_bar.sum(0), gate.T, v_bar, alpha=-1)
        layer_out.previous.addcmul_(v, turned)
        by_v += (layer.previous * turned).sum(1)
        found.addmm_(v_bar, top.previous.T)
    through_out[0].add_(by_v)
    return found.addcmul_(found, gate, value=-1)
