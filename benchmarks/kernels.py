"""Where the device's time goes, by kind of kernel, in a training step or an evaluation of the U-Net
of `benchmarks/unet.py`.

Command:   python benchmarks/kernels.py [--network paper --batch 256 --dtype bfloat16]
           [--what evaluation] [--steps 5] [--json FILE]
Hardware:  any; on a GPU a minute beyond compiling

Some steps are begun one after the other, as `main.py train` begins them, under JAX's profiler,
whose events are read. Printed are, for a step, the milliseconds and the number of kernels of each
kind, and the gaps: the time between the first kernel's begin and the last one's end in which none
ran. The kind is told by the kernel's name, as XLA, cuDNN, cuBLAS and Triton give it: XLA names a
loop after what it ends in, so that a conversion may hide arithmetic before it. On a CPU the parts
of XLA's program count as kernels, without what its libraries do for them in other threads; a
`ynn_fusion`, whatever is in it, is a loop there."""

import argparse
import gzip
import json
import pathlib
import sys
import tempfile

import jax

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]
from unet import NETWORKS, begun, write  # noqa: E402

from diffusion_jax.devices import cpu  # noqa: E402

# The first kind whose words are in the name, in small letters, is the kernel's: the words of later
# kinds occur in names of earlier ones, such as flash_fprop, splitKreduce, input_transpose_reduce.
KINDS = {
    "attention": ("fmha", "mha_", "sdpa", "flash", "attention", "softmax"),
    "convolutions, gradient of kernels": ("wgrad", "backwardfilter", "backward_filter"),
    "convolutions, gradient of images": ("dgrad", "backwardinput", "backward_data"),
    "convolutions, forward": (
        "fprop",
        "implicit_",
        "winograd",
        "convolution",
        "convolve",
        "conv_general",
        "convforward",
        "convbias",
        "cudnn-conv",
    ),
    "products of matrices": (
        "gemm",
        "gemv",
        "nvjet",
        "cutlass",
        "cublas",
        "splitk",
        "matmul",
        "dot",
    ),
    "reductions": ("reduce", "reduction"),
    "transposes and copies": (
        "transpose",
        "nchwtonhwc",
        "nhwctonchw",
        "copy",
        "memcpy",
        "memset",
        "concatenate",
        "slice",
        "padding",
    ),
    "conversions": ("loop_convert_fusion", "wrapped_convert", "convert_element_type"),
    "elementwise loops": ("loop", "fusion", "wrapped", "elementwise", "triton"),
}
OTHER = "other"
WHAT = ("training step", "evaluation")


def kind_of(name: str) -> str:
    """Of a kernel by its name; "other" where none of the words is in it."""
    low = name.lower()
    return next((kind for kind, words in KINDS.items() if any(w in low for w in words)), OTHER)


def kernels(trace: list[dict]) -> list[tuple[str, float, float]]:
    """(name, begin, end in microseconds) of the kernels among the events of a trace: what GPUs' and
    TPUs' streams ran or, where there are none, the parts of the CPU's program."""
    processes, threads = {}, {}
    for event in trace:
        if event.get("name") == "process_name":
            processes[event["pid"]] = event["args"]["name"]
        elif event.get("name") == "thread_name":
            threads[event["pid"], event["tid"]] = event["args"]["name"]

    def of_device(event):
        thread = threads.get((event["pid"], event["tid"]), "")
        streams = "TPU" in processes[event["pid"]] and thread == "XLA Ops"
        return streams or thread.startswith("Stream")

    spans = [event for event in trace if event.get("ph") == "X"]
    devices = {pid for pid, name in processes.items() if name.startswith("/device:")}
    found = [event for event in spans if event["pid"] in devices and of_device(event)]
    if not found:
        parts = [event for event in spans if "hlo_op" in event.get("args", {})]
        found = [event for event in parts if not event["name"].startswith("end: ")]
    return [(e["name"], e["ts"], e["ts"] + e.get("dur", 0.0)) for e in found]


def table(found: list[tuple[str, float, float]], steps: int) -> dict:
    """Of kernels (name, begin, end in microseconds) of so many steps: for one step, the
    milliseconds and the number of each kind, of all, and of the gaps between them."""
    kinds: dict[str, dict] = {kind: {"ms": 0.0, "kernels": 0.0} for kind in (*KINDS, OTHER)}
    for name, begin, end in found:
        row = kinds[kind_of(name)]
        row["ms"] += (end - begin) / 1e3 / steps
        row["kernels"] += 1 / steps
    busy, reached = 0.0, float("-inf")
    for _, begin, end in sorted(found, key=lambda kernel: kernel[1]):  # those of streams overlap
        busy += max(0.0, end - max(begin, reached))
        reached = max(reached, end)
    span = reached - min(begin for _, begin, _ in found) if found else 0.0
    return {
        "kinds": {kind: row for kind, row in kinds.items() if row["kernels"]},
        "kernels": len(found) / steps,
        "busy_ms": busy / 1e3 / steps,
        "gaps_ms": (span - busy) / 1e3 / steps,
        "span_ms": span / 1e3 / steps,
    }


def longest(found: list[tuple[str, float, float]], steps: int, count: int) -> list[dict]:
    """The kernels of one name that together take longest, with the milliseconds and the number of a
    step."""
    names: dict[str, dict] = {}
    for name, begin, end in found:
        row = names.setdefault(
            name, {"name": name, "kind": kind_of(name), "ms": 0.0, "kernels": 0.0}
        )
        row["ms"] += (end - begin) / 1e3 / steps
        row["kernels"] += 1 / steps
    return sorted(names.values(), key=lambda row: -row["ms"])[:count]


def traced(work, steps: int) -> list[dict]:
    """The profiler's events of so many calls, begun one after the other, once all are done."""
    for _ in range(2):
        jax.block_until_ready(work())
    options = jax.profiler.ProfileOptions()
    options.python_tracer_level = 0  # it would slow the host, and fill the trace
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder, create_perfetto_trace=True, profiler_options=options):
            results = None
            for _ in range(steps):
                results = work()
            jax.block_until_ready(results)
        (file,) = pathlib.Path(folder).rglob("perfetto_trace.json.gz")
        with gzip.open(file) as opened:
            return json.load(opened)["traceEvents"]


def main() -> int:
    parser = argparse.ArgumentParser(description="The device's time by kind of kernel.")
    parser.add_argument("--network", choices=tuple(NETWORKS), default="small")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--what", choices=WHAT, default=WHAT[0])
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--longest", type=int, default=20, help="kernels that the JSON names")
    parser.add_argument("--json", type=pathlib.Path)
    options = parser.parse_args()
    cpu.tune()
    setting = (options.batch, options.dtype, options.network)
    work = begun(*setting, wanted=(options.what,))[options.what]
    found = kernels(traced(work, options.steps))
    if not found:
        print("error: the profiler saw no kernel", file=sys.stderr)
        return 1
    report = table(found, options.steps)
    print(
        f"{options.what}, {options.network} network, batch {options.batch}, {options.dtype}, "
        f"{jax.devices()[0].device_kind}; of a step"
    )
    print(f"{'':36}{'ms':>10}{'kernels':>10}")
    rows = sorted(report["kinds"].items(), key=lambda row: -row[1]["ms"])
    for kind, row in rows:
        print(f"{kind:36}{row['ms']:10.2f}{row['kernels']:10.0f}")
    print(f"{'busy':36}{report['busy_ms']:10.2f}{report['kernels']:10.0f}")
    print(f"{'gaps':36}{report['gaps_ms']:10.2f}")
    setting = {name: getattr(options, name) for name in ("network", "batch", "dtype", "what")}
    device = {"steps": options.steps, "devices": str(jax.devices())}
    names = longest(found, options.steps, options.longest)
    write({**setting, **device, **report, "longest": names}, options.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
