"""Feature points of a network by name, found by one dry run."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from medkd.errors import UserError, nearest
from medkd.types import Anatomy, Tap, View


def split_output(output: Any, dims: int) -> tuple[Tensor, list[Tensor]]:
    """Return the logits and the deep-supervision heads of whatever a network returned.

    A tensor ``(B, K, *S)``, DynUNet's stack ``(B, heads, K, *S)``, or a list with the full
    resolution first.

    Raises:
        UserError: any other output.
    """
    if isinstance(output, Tensor):
        if output.ndim == dims + 2:
            return output, []
        if output.ndim == dims + 3:
            first, *rest = output.unbind(1)
            return first, rest
    elif isinstance(output, (list, tuple)) and output and all(isinstance(item, Tensor) for item in output):
        return output[0], list(output[1:])
    shape = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
    raise UserError(f"the network returned {shape}; it must return logits (batch, classes, *axes) or a list of them")


@contextmanager
def _recording(
    modules: dict[str, nn.Module], seen: dict[str, Tensor], fed: dict[str, Tensor] | None = None
) -> Iterator[None]:
    def hook(name: str) -> Any:
        def keep(_module: nn.Module, inputs: Any, output: Any) -> None:
            if fed is not None and len(inputs) == 1 and isinstance(inputs[0], Tensor):
                fed[name] = inputs[0]
            if isinstance(output, Tensor):
                seen.pop(name, None)  # a module called twice counts where it was called last
                seen[name] = output

        return keep

    handles = [module.register_forward_hook(hook(name)) for name, module in modules.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class Tapped:
    """A network read through its taps.

    Every network offers ``enc0``, ``enc1``... on the way down (last output before each
    downsampling), ``bottleneck``, and ``dec1``, ``dec0`` on the way up (``dec0`` at the finest
    stride), and every module path of its own (``model.0.conv``).

    Args:
        network: the network; it is not copied. ``run`` may be set to a wrapper of it that is called instead.
        image: ``(1, C, *S)``, any values, of a size that the network takes.

    Raises:
        UserError: the network cannot run on such an image.
    """

    def __init__(self, network: nn.Module, image: Tensor) -> None:
        self.network = network
        self.run: Callable[[Tensor], Any] = network
        self.dims = image.ndim - 2
        modules = {name: module for name, module in network.named_modules() if name}
        seen: dict[str, Tensor] = {}
        fed: dict[str, Tensor] = {}
        training = network.training
        network.eval()
        try:
            with torch.no_grad(), _recording(modules, seen, fed):
                logits = split_output(network(image), self.dims)[0]
                self.logits_shape = tuple(logits.shape)
        except (RuntimeError, ValueError, TypeError, AssertionError) as error:
            raise UserError(
                f"the network cannot run on a patch of {tuple(image.shape[2:])}: {str(error).splitlines()[0]}; "
                "choose a patch divisible by its total stride"
            ) from error
        finally:
            network.train(training)
        self._paths = {name: name for name in seen}
        # attention maps may have as many axes as a volume, but not its batch
        maps = {name: out for name, out in seen.items() if out.ndim == image.ndim and len(out) == len(image)}
        self._shapes = {name: self._tap(image, out) for name, out in maps.items()}
        places = {name: self._shapes[name].stride for name, out in maps.items() if out.shape[2:].numel() > 1}
        friendly = _friendly(places, self._classes_only(seen))
        self._friendly = tuple(friendly)
        self._paths |= friendly
        self._shapes |= {name: self._shapes[path] for name, path in friendly.items()}
        self._heads = _heads(seen, fed, logits)
        self._heads |= {name: self._heads[path] for name, path in friendly.items() if path in self._heads}

    @staticmethod
    def _tap(image: Tensor, out: Tensor) -> Tap:
        sizes = zip(image.shape[2:], out.shape[2:], strict=True)
        return Tap(int(out.shape[1]), tuple(max(1, round(a / b)) for a, b in sizes))

    def _classes_only(self, seen: dict[str, Tensor]) -> set[str]:
        return {name for name, out in seen.items() if tuple(out.shape) == self.logits_shape}

    @property
    def names(self) -> tuple[str, ...]:
        """The friendly names, from the image inwards and back."""
        return self._friendly

    @property
    def anatomy(self) -> Anatomy:
        """Channels, strides and heads of every tap, friendly or by module path."""
        return Anatomy(self._shapes, self.logits_shape[1], self.dims, self._heads, self.network)

    def path(self, name: str) -> str:
        """Return the module path of a tap.

        Raises:
            UserError: no such tap; names the nearest and all friendly ones.
        """
        if name not in self._shapes:
            raise UserError(
                f"no tap {name!r}{nearest(name, self._shapes)}; this network offers {', '.join(self.names)}"
            )
        return self._paths[name]

    def __call__(self, image: Tensor, taps: Sequence[str] = ()) -> View:
        """Run the network on ``(B, C, *S)`` and return logits and taps; heads appear as ``logits_1``..."""
        paths = {name: self.path(name) for name in taps}
        modules = {path: self.network.get_submodule(path) for path in paths.values()}
        seen: dict[str, Tensor] = {}
        with _recording(modules, seen):
            logits, heads = split_output(self.run(image), self.dims)
        found = {name: seen[path] for name, path in paths.items()}
        return View(logits, found | {f"logits_{i}": head for i, head in enumerate(heads, 1)})


def _heads(seen: dict[str, Tensor], fed: dict[str, Tensor], logits: Tensor) -> dict[str, str]:
    """Return tap -> the outermost module that was fed the tap and nothing else, and returned the logits."""
    # a module ends after the ones inside it, so that the last is the outermost
    makers = {id(x): name for name, x in fed.items() if seen.get(name) is logits and x is not logits}
    return {name: makers[id(out)] for name, out in seen.items() if id(out) in makers}


def _friendly(strides: dict[str, tuple[int, ...]], heads: set[str]) -> dict[str, str]:
    """Name the last output of each run of equal stride: down ``enc``, deepest, up ``dec``."""
    order = [name for name in strides if name not in heads]
    if not order:
        return {}
    runs: list[tuple[tuple[int, ...], str]] = []
    for name in order:
        if runs and runs[-1][0] == strides[name]:
            runs[-1] = (strides[name], name)
        else:
            runs.append((strides[name], name))
    volumes = [torch.tensor(stride).prod().item() for stride, _ in runs]
    deepest = max(range(len(runs)), key=lambda i: (volumes[i], -i))
    named = {f"enc{i}": name for i, (_, name) in enumerate(runs[:deepest])}
    named["bottleneck"] = runs[deepest][1]
    finest = volumes[deepest]
    last: dict[float, str] = {}
    for volume, (_, name) in zip(volumes[deepest + 1 :], runs[deepest + 1 :], strict=True):
        if volume <= finest:  # side branches that fall back to a coarser grid are not on the way up
            last[volume] = name
            finest = volume
    up = [last[volume] for volume in sorted(last, reverse=True)]
    named |= {f"dec{len(up) - 1 - i}": name for i, name in enumerate(up)}
    return named
