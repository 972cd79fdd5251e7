"""What the benchmarks of GPUs make of a profile's events, and of a compiled program's text."""

import pytest

from benchmarks import gpu_program, kernels

NAMES = {  # as the libraries give them
    "cudnn_generated_fort_native_sdpa_sm90_flash_fprop_wgmma_f16_knob_6": "attention",
    "cudnn_generated_fort_native_sdpa_sm90_flash_bprop_wgmma_f16_knob_27": "attention",
    "sm90_xmma_wgrad_implicit_gemm_indexed_bf16bf16_bf16f32": "convolutions, gradient of kernels",
    "sm90_xmma_dgrad_implicit_gemm_bf16bf16_bf16f32_nhwckrsc": "convolutions, gradient of images",
    "sm90_xmma_fprop_implicit_gemm_bf16bf16_bf16f32_f32_nhwckrsc": "convolutions, forward",
    "nvjet_tst_128x256_64x4_1x2_h_bz_coopA_NNT": "products of matrices",
    "void cublasLt::splitKreduce_kernel<32, 16, int>": "products of matrices",
    "gemm_fusion_dot_17": "products of matrices",
    "input_concatenate_reduce_fusion_3": "reductions",
    "void cudnn::ops::nchwToNhwcKernel<__half>": "transposes and copies",
    "loop_transpose_fusion": "transposes and copies",
    "MemcpyD2D": "transposes and copies",
    "loop_convert_fusion_12": "conversions",
    "loop_add_convert_fusion": "elementwise loops",
    "loop_multiply_fusion": "elementwise loops",
    "cub::DeviceRadixSortKernel": "other",
    "__cudnn$convBackwardFilter": "convolutions, gradient of kernels",  # targets of XLA's calls
    "__cudnn$convBackwardInput": "convolutions, gradient of images",
    "__cudnn$convBiasActivationForward": "convolutions, forward",
    "__cudnn$fmhaSoftmaxBackward": "attention",
    "__cublas$lt$matmul": "products of matrices",
}


@pytest.mark.parametrize(("name", "kind"), NAMES.items())
def test_a_kernel_is_of_the_kind_that_its_name_says(name, kind):
    assert kernels.kind_of(name) == kind


def named(what, name, pid, tid=0):
    return {"ph": "M", "name": what, "pid": pid, "tid": tid, "args": {"name": name}}


def ran(name, pid, tid, begin, length, **more):
    return {"ph": "X", "name": name, "pid": pid, "tid": tid, "ts": begin, "dur": length, **more}


def test_of_a_gpu_its_streams_count_and_of_a_cpu_the_parts_of_its_program():
    part = {"args": {"hlo_op": "dot.1"}}
    host = [
        named("process_name", "/host:CPU", 1),
        ran("dot.1", 1, 5, 0.0, 4.0, **part),
        ran("end: dot.1", 1, 5, 4.0, 1.0, **part),
        ran("ParseArguments", 1, 5, 6.0, 2.0),
    ]
    device = [
        named("process_name", "/device:GPU:0", 2),
        named("thread_name", "Stream #13(Compute,MemcpyD2D)", 2, 7),
        named("thread_name", "XLA Modules", 2, 8),
        ran("loop_add_fusion", 2, 7, 10.0, 3.0),
        ran("jit_step", 2, 8, 10.0, 3.0),
    ]
    assert kernels.kernels(host) == [("dot.1", 0.0, 4.0)]
    assert kernels.kernels(host + device) == [("loop_add_fusion", 10.0, 13.0)]


def test_a_step_is_busy_where_any_stream_is():
    found = [
        ("loop_add_fusion", 0.0, 4000.0),
        ("nvjet_1", 1000.0, 2000.0),  # within the first, on another stream
        ("nvjet_2", 3000.0, 6000.0),
        ("strange", 8000.0, 9000.0),
    ]
    table = kernels.table(found, steps=2)
    assert table["kinds"] == {
        "products of matrices": {"ms": 2.0, "kernels": 1.0},
        "elementwise loops": {"ms": 2.0, "kernels": 0.5},
        "other": {"ms": 0.5, "kernels": 0.5},
    }
    assert (table["busy_ms"], table["gaps_ms"], table["span_ms"]) == (3.5, 1.0, 4.5)
    assert table["kernels"] == 2.0
    (most,) = kernels.longest(found, steps=2, count=1)
    assert most == {"name": "loop_add_fusion", "kind": "elementwise loops", "ms": 2, "kernels": 0.5}


PROGRAM = """
%fused_add (p0: bf16[8,4], p1: bf16[8,4]) -> bf16[8,4] {
  %p0 = bf16[8,4]{1,0} parameter(0)
  %p1 = bf16[8,4]{1,0} parameter(1)
  ROOT %sum = bf16[8,4]{1,0} add(%p0, %p1)
}

%fused_reduce (p2: bf16[8,4]) -> f32[8] {
  %p2 = bf16[8,4]{1,0} parameter(0)
  %wide = f32[8,4]{1,0} convert(%p2)
  %zero = f32[] constant(0)
  ROOT %all = f32[8]{0} reduce(%wide, %zero), dimensions={1}, to_apply=%region
}

ENTRY %main (x: bf16[8,4], w: f32[4,4]) -> f32[8] {
  %x = bf16[8,4]{1,0} parameter(0)
  %w = f32[4,4]{1,0} parameter(1)
  %v = bf16[4,4]{1,0} fusion(%w), kind=kLoop, calls=%fused_convert, metadata={op_name="a"}
  %c = (bf16[8,4]{1,0}, s8[4096]{0}) custom-call(%x, %v), custom_call_target="__cublas$lt$matmul"
  %product = bf16[8,4]{1,0} get-tuple-element(%c), index=0
  %added = bf16[8,4]{1,0} fusion(%product, /*index=1*/%x), kind=kLoop, calls=%fused_add
  ROOT %means = f32[8]{0} fusion(%added), kind=kInput, calls=%fused_reduce
}

%fused_convert (p3: f32[4,4]) -> bf16[4,4] {
  %p3 = f32[4,4]{1,0} parameter(0)
  ROOT %to = bf16[4,4]{1,0} convert(%p3)
}
"""


def test_a_program_moves_its_kernels_operands_and_results():
    x, w, narrow = 8 * 4 * 2, 4 * 4 * 4, 4 * 4 * 2  # bytes
    assert gpu_program.table(PROGRAM) == {
        "conversions": {"launches": 1, "bytes": w + narrow},
        "products of matrices": {"launches": 1, "bytes": x + narrow + x},  # without the workspace
        "elementwise loops": {"launches": 1, "bytes": 3 * x},
        "reductions": {"launches": 1, "bytes": x + 8 * 4},
    }


def test_a_type_has_the_bytes_of_its_arrays():
    assert gpu_program.size("(f32[2,3]{1,0}, bf16[], pred[5]{0}, u8[0]{0}, f8e4m3fn[4]{0})") == 35
