"""Times PyTorch's attention for the benchmarks: a JSON request a line in, a JSON answer a line out (see peers.rs)."""

import json
import os
import sys
import warnings

# What libraries print must not be taken for an answer.
answers = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)


def answer(**fields):
    print(json.dumps(fields), file=answers, flush=True)


def first_line(error):
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0]


class Timer:
    """The inputs of the last shape, and how long a call of it takes."""

    def __init__(self, torch):
        self.torch = torch
        self.shape = None
        self.tensors = None
        self.call_ms = {}

    def inputs(self, shape, dtype):
        if self.shape != (shape, dtype):
            torch = self.torch
            self.shape = self.tensors = None
            make = lambda: torch.randn(shape, device="cuda", dtype=getattr(torch, dtype))
            query, key, value = make(), make(), make()
            # As trained models have: keys with an offset by channel.
            key += 2 * torch.randn(shape[-1], device="cuda", dtype=key.dtype)
            self.shape, self.tensors, self.call_ms = (shape, dtype), (query, key, value), {}
        return self.tensors

    def measure(self, backend, dtype, batch, heads, length, head_dim, causal, warm_up_ms, sample_ms, samples):
        torch = self.torch
        from torch.nn.attention import SDPBackend, sdpa_kernel
        from torch.nn.functional import scaled_dot_product_attention

        query, key, value = self.inputs((batch, heads, length, head_dim), dtype)
        if not hasattr(SDPBackend, backend):
            raise RuntimeError(f"PyTorch {torch.__version__} has no {backend}")

        def run(calls):
            for _ in range(calls):
                scaled_dot_product_attention(query, key, value, is_causal=causal)

        def time(counts):
            """Milliseconds of a call in each of several rows of calls, without a pause between them."""
            events = [torch.cuda.Event(enable_timing=True) for _ in range(len(counts) + 1)]
            events[0].record()
            for event, calls in zip(events[1:], counts):
                run(calls)
                event.record()
            events[-1].synchronize()
            pairs = zip(events, events[1:], counts)
            return [start.elapsed_time(stop) / calls for start, stop, calls in pairs]

        with torch.no_grad(), sdpa_kernel([getattr(SDPBackend, backend)]):
            if (backend, causal) not in self.call_ms:
                run(1)
                self.call_ms[backend, causal] = time([1])[0]
            call_ms = self.call_ms[backend, causal]
            calls = lambda milliseconds: max(1, round(milliseconds / call_ms))
            run(calls(warm_up_ms))
            return time([calls(sample_ms)] * samples)


def main():
    warnings.filterwarnings("ignore")
    try:
        import torch

        torch.zeros(1, device="cuda")
    except Exception as error:
        answer(error=f"no PyTorch with a GPU in {sys.executable}: {first_line(error)}")
        return
    timer = Timer(torch)
    answer(version=torch.__version__)
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer(milliseconds=timer.measure(**request))
        except Exception as error:
            answer(error=f"{request['backend']}: {first_line(error)}")


main()
