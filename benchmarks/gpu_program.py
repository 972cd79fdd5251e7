"""What the compiled program of a training step, or of an evaluation, launches and moves on an H100;
no GPU is needed.

Command:   python benchmarks/gpu_program.py [--network paper --batch 256 --dtype bfloat16]
           [--what evaluation] [--json FILE]
           (needs `pip install -e ".[cuda]"`: XLA's compiler for NVIDIA's GPUs is in its plugin)
Hardware:  any; the paper's network takes half a minute for an evaluation, two for a training step

The networks are those of `benchmarks/unet.py`, the kinds those of `benchmarks/kernels.py`, told
here by what is in a kernel. A launch is an instruction of the program's entry that computes: a
fusion, a call of cuDNN or cuBLAS, which may launch several kernels of its own, a copy. The bytes
that it moves are those of its operands and results, each once: a kernel that reads an array twice,
or only a part of it, or finds it in the cache, moves others. A loop counts as one launch, its body
not at all. Nothing is tried out, as there is nothing to try it on: products are cuBLAS's, where the
device might choose Triton's, and what cuDNN and cuBLAS take as workspace does not count. Temporary
memory is what XLA gives to arrays that live within the step, without that workspace."""

import argparse
import collections
import math
import pathlib
import re
import sys

import jax
import jax.numpy as jnp
from jax.experimental import topologies

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]
from kernels import WHAT, kind_of  # noqa: E402
from unet import NETWORKS, evaluation, get_config, training_step, write  # noqa: E402

from diffusion_jax.runs.build import build  # noqa: E402

# Facts of the H100 SXM and of CUDA 12.9, in the form of XLA's GpuTargetConfigProto.
H100 = """
gpu_device_info {
  threads_per_block_limit: 1024
  threads_per_warp: 32
  shared_memory_per_block: 49152
  shared_memory_per_core: 233472
  threads_per_core_limit: 2048
  core_count: 132
  fpus_per_core: 128
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  memory_bandwidth: 3352320000000
  l2_cache_size: 52428800
  clock_rate_ghz: 1.98
  device_memory_size: 84942979072
  shared_memory_per_block_optin: 232448
  cuda_compute_capability { major: 9 feature_extension: ACCELERATED_FEATURES }
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
  thread_dim_limit_x: 1024
  thread_dim_limit_y: 1024
  thread_dim_limit_z: 64
  device_vendor: "NVIDIA Corporation"
  platform_version: "Compute Capability 9.0a"
  device_address_bits: 64
  pcie_bandwidth: 34359738368
  ecc_enabled: true
  name: "NVIDIA H100 80GB HBM3"
  driver_version: "12.9.0"
  runtime_version: "12.9.0"
  compile_time_toolkit_version: "12.9.0"
  dnn_version: "9.28.0"
  cub_version: "3.1.2"
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 28 patch: 0 }
runtime_version { major: 12 minor: 9 patch: 0 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""
OPTIONS = {  # what would ask the device: which product is faster, how CUB sorts
    "xla_gpu_enable_triton_gemm": False,
    "xla_gpu_deviceless_cub_mode": "DEVICELESS_CUB_DISABLED",
}
FREE = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "opt-barrier"}
MOVES = {"parameter", "constant", "tuple", "bitcast", "transpose", "copy", "concatenate", "slice"}
ARRAY = re.compile(r"\b(pred|bf16|[a-z]+\d+)\w*\[([\d,]*)\]")
COMPUTATION = re.compile(r"^(ENTRY )?%([\w.\-]+) .*\{$")
INSTRUCTION = re.compile(r"^\s*(?:ROOT )?%([\w.\-]+) = (\(.*?\)|\S+) ([\w\-]+)\((.*?)\)(.*)$")


def h100():
    """A device to compile for. RuntimeError without the plugin."""
    made = topologies.get_topology_desc(
        platform="cuda", topology_name="", topology="1x1x1", target_config=H100
    )
    return jax.sharding.SingleDeviceSharding(made.devices[0])


def compiled(network: str, batch: int, dtype: str, what: str):
    """The program of a step of `benchmarks/unet.py`, for an H100."""
    config = get_config(batch, dtype, network=network)
    place, parts = h100(), build(config)
    state = jax.eval_shape(parts.init_state, jax.random.key(0))
    if what == "evaluation":
        x, t = (jax.ShapeDtypeStruct((batch, *of), jnp.float32) for of in ((32, 32, 3), ()))
        function, arguments, donated = evaluation(parts), (state.params, x, t), ()
    else:
        images = {"image": jax.ShapeDtypeStruct((batch, 32, 32, 3), jnp.uint8)}
        key = jax.eval_shape(lambda: jax.random.key(0))
        function, arguments, donated = training_step(config, parts), (state, key, images), (0,)
    placed = jax.tree.map(
        lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=place), arguments
    )
    lowered = jax.jit(function, donate_argnums=donated).lower(*placed)
    return lowered.compile(compiler_options=OPTIONS)


def size(text: str) -> int:
    """Bytes of the arrays of a type, as in (f32[2,3]{1,0}, bf16[])."""
    found = 0
    for kind, shape in ARRAY.findall(text):
        bits = 8 if kind == "pred" else int(re.sub(r"\D", "", kind.replace("bf", "")))
        found += bits * math.prod(int(n) for n in shape.split(",") if n) // 8
    return found


def kind_of_fusion(line: str, body: list[str]) -> str:
    """What a fused computation mostly is, by what is in it."""
    inside = {found[3] for one in body if (found := INSTRUCTION.match(one))}
    loop = "kind=kLoop" in line
    if "dot" in inside:
        return "products of matrices"
    if "reduce" in inside and not loop:
        return "reductions"
    if inside <= MOVES or ("transpose" in inside and not loop):
        return "transposes and copies"
    return "conversions" if inside <= {*MOVES, "convert"} else "elementwise loops"


def table(program: str) -> dict:
    """kind -> {launches, bytes} of the entry of a compiled program's text."""
    computations: dict[str, list[str]] = collections.defaultdict(list)
    name = entry = ""
    for line in program.splitlines():
        if found := COMPUTATION.match(line):
            name = found[2]
            entry = name if found[1] else entry
        else:
            computations[name].append(re.sub(r"/\*index=\d+\*/", "", line))
    kinds: dict[str, dict] = collections.defaultdict(lambda: {"launches": 0, "bytes": 0})
    sizes: dict[str, int] = {}
    for line in computations[entry]:
        if not (found := INSTRUCTION.match(line)):
            continue
        name, result, operation, arguments, rest = found.groups()
        target = re.search(r'custom_call_target="([^"]*)"', rest)
        if target:  # a library's workspace comes with its results, as bytes
            result = re.sub(r"\b[su]8\[\d*\]", "", result)
        sizes[name] = size(result)
        if operation in FREE:
            continue
        called = re.search(r"calls=%([\w.\-]+)", rest)
        if operation == "fusion" and called:
            kind = kind_of_fusion(rest, computations[called[1]])
        else:
            kind = kind_of(target[1] if target else operation)
        read = sum(sizes.get(one, 0) for one in re.findall(r"%([\w.\-]+)", arguments))
        kinds[kind]["launches"] += 1
        kinds[kind]["bytes"] += sizes[name] + read
    return dict(kinds)


def main() -> int:
    parser = argparse.ArgumentParser(description="What a step launches and moves on an H100.")
    parser.add_argument("--network", choices=tuple(NETWORKS), default="small")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--what", choices=WHAT, default=WHAT[0])
    parser.add_argument("--json", type=pathlib.Path)
    options = parser.parse_args()
    jax.config.update("jax_platforms", "cpu")  # which computes; the plugin only compiles
    try:
        h100()
    except Exception as error:
        said = " ".join(str(error).split())[:200]
        print(f'error: no compiler for GPUs ({said}); pip install -e ".[cuda]"', file=sys.stderr)
        return 2
    program = compiled(options.network, options.batch, options.dtype, options.what)
    kinds = table(program.as_text() or "")
    temporary = getattr(program.memory_analysis(), "temp_size_in_bytes", 0)
    print(
        f"{options.what}, {options.network} network, batch {options.batch}, {options.dtype}, "
        "compiled for an H100"
    )
    print(f"{'':36}{'launches':>10}{'GiB':>10}")
    rows = sorted(kinds.items(), key=lambda row: -row[1]["bytes"])
    whole = {name: sum(row[name] for row in kinds.values()) for name in ("launches", "bytes")}
    for kind, row in (*rows, ("all", whole)):
        print(f"{kind:36}{row['launches']:10}{row['bytes'] / 2**30:10.2f}")
    print(f"temporary memory {temporary / 2**30:.2f} GiB")
    setting = {name: getattr(options, name) for name in ("network", "batch", "dtype", "what")}
    report = {**setting, "jax": jax.__version__, "kinds": kinds, **whole}
    write({**report, "temporary_bytes": temporary}, options.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
