"""A network as samplers call it: one function, fast on its device, the same bits in any batch."""

from typing import Any

import torch
from diffusers.models.unets.unet_2d import UNet2DModel
from diffusers.models.upsampling import Upsample2D
from torch import nn

from pipeline.device import Precision, autocast

_WARM_UP_CALLS = 3  # before a CUDA graph is captured, as torch's documentation asks


class Network:
    """Calls a frozen UNet in one precision.

    On CUDA each shape of input is captured once as a CUDA graph and replayed: the same kernels
    without the cost of launching them. Calls always have one of few shapes, hence one graph each.
    """

    def __init__(
        self,
        model: UNet2DModel,
        device: torch.device,
        precision: Precision,
        compiled: bool = False,
    ) -> None:
        """Prepare the network.

        Args:
            model: on `device`, in eval mode.
            device: where it is.
            precision: of its arithmetic.
            compiled: use torch.compile; the same images but for the last digits.
        """
        self.device, self.precision = device, precision
        _keep_memory_format(model)
        self._model: Any = torch.compile(model, dynamic=False) if compiled else model
        self._graphs: dict[tuple[int, ...], _Graph] = {}
        # Inductor's own CUDA graphs would serve too, but not without compilation.
        self._captures = device.type == "cuda"

    @torch.no_grad()
    def __call__(
        self, seen: torch.Tensor, time: torch.Tensor, labels: torch.Tensor
    ) -> torch.Tensor:
        """Return the prediction (N, C, H, W) float32 for noisy images, (N,) times and labels."""
        if not self._captures:
            return self._run(seen, time, labels)
        graph = self._graphs.get(tuple(seen.shape))
        if graph is None:
            graph = self._graphs[tuple(seen.shape)] = _Graph(self._run, seen, time, labels)
        return graph(seen, time, labels)

    def forget(self) -> None:
        """Free the captured graphs and the memory that they hold."""
        self._graphs.clear()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def _run(self, seen: torch.Tensor, time: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        with autocast(self.device, self.precision):
            (predicted,) = self._model(seen, time, class_labels=labels, return_dict=False)
        out: torch.Tensor = predicted.float()
        return out


class _Graph:
    """A captured call of fixed shape: inputs are copied in, the graph replayed, the output read."""

    def __init__(self, run: Any, *inputs: torch.Tensor) -> None:
        self._inputs = [one.clone() for one in inputs]
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(_WARM_UP_CALLS):
                run(*self._inputs)
        torch.cuda.current_stream().wait_stream(stream)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self._output = run(*self._inputs)

    def __call__(self, *inputs: torch.Tensor) -> torch.Tensor:
        for own, given in zip(self._inputs, inputs, strict=True):
            own.copy_(given)
        self._graph.replay()
        return self._output.clone()  # type: ignore[no-any-return]


def _keep_memory_format(model: nn.Module) -> None:
    """Have upsampling read its input in one memory format, whatever the size of the batch.

    diffusers makes it contiguous from 64 images on; the convolution behind it then runs another
    algorithm, and an image would differ in its last digits with the batch that it is drawn in.
    """
    for module in model.modules():
        if isinstance(module, Upsample2D) and not getattr(module, "keeps_memory_format", False):
            module.register_forward_pre_hook(lambda _, args: (args[0].contiguous(), *args[1:]))
            module.keeps_memory_format = True
