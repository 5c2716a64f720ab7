# SPDX-License-Identifier: Apache-2.0
"""Compiled text is read right: loops, what is hidden, sizes, kernels."""

from thinkgen_jax.aot import hlo

# Lines are cut by " \\" and joined again.
TEXT = r"""HloModule jit_step, is_scheduled=true

%async_collective_fusion.1 (p.0: bf16[8,4]) -> bf16[64,4] {
  %p.0 = bf16[8,4]{1,0} parameter(0)
  ROOT %all-gather.1 = bf16[64,4]{1,0} all-gather(%p.0), channel_id=1, dimensions={0}
}

%waits.8 (p.8: bf16[8,4]) -> bf16[64,4] {
  %p.8 = bf16[8,4]{1,0} parameter(0)
  ROOT %all-gather.8 = bf16[64,4]{1,0} all-gather(%p.8), channel_id=1, dimensions={0}
}

%body.2 (arg.1: (s32[], bf16[8,4])) -> (s32[], bf16[8,4]) {
  %arg.1 = (s32[]{:T(128)}, bf16[8,4]{1,0}) parameter(0)
  %splash_mha_fwd.3 = (f32[4,128]{1,0}, bf16[2,128]{1,0}) custom-call(%arg.1), \
custom_call_target="tpu_custom_call", frontend_attributes={kernel_metadata={
"xprof_metadata":"{\"block_q\": 512}"
}}, metadata={op_name="jit(step)/transpose(jvp())/attn"}
  %fusion.1 = bf16[64,4]{1,0} fusion(%arg.1), kind=kCustom, calls=%async_collective_fusion.1
  %async-collective-done = bf16[64,4]{1,0} fusion(%fusion.1), kind=kCustom, calls=%waits.8
  %all-gather.2 = bf16[16,4]{1,0} all-gather(%fusion.1), channel_id=2, \
metadata={op_name="jit(step)/transpose(jvp(M))/layer/dot"}
  %ag-start = (bf16[8,4]{1,0}, bf16[32,4]{1,0}) all-gather-start(%arg.1), dimensions={0}
  %ag-done = bf16[32,4]{1,0} all-gather-done(%ag-start)
  ROOT %tuple.1 = (s32[]{:T(128)}, bf16[8,4]{1,0}) tuple(%arg.1, %ag-done)
}

%condition.3 (arg.2: (s32[], bf16[8,4])) -> pred[] {
  %arg.2 = (s32[]{:T(128)}, bf16[8,4]{1,0}) parameter(0)
  ROOT %lt = pred[] compare(%arg.2, %arg.2), direction=LT
}

ENTRY %main.4 (param.1: bf16[8,4]) -> bf16[8,4] {
  %param.1 = bf16[8,4]{1,0} parameter(0)
  %copy.7 = f32[256,2]{1,0} copy(%param.1), metadata={op_name="jit(step)/cache"}
  %while.1 = (s32[]{:T(128)}, bf16[8,4]{1,0}) while(%param.1), condition=%condition.3, body=%body.2
  ROOT %all-reduce.1 = f32[10]{0} all-reduce(%while.1), to_apply=%condition.3
}
""".replace("\\\n", "")


def test_loops_and_hidden_collectives():
    found = {(op.kind, op.size): op for op in hlo.operations(TEXT)}
    fused, exposed = found["all-gather", 512], found["all-gather", 128]
    started, summed = found["all-gather", 256], found["all-reduce", 40]
    assert fused.in_loop and fused.is_hidden
    assert exposed.in_loop and not exposed.is_hidden and exposed.is_backward
    assert started.in_loop and started.is_hidden
    assert not summed.in_loop and not summed.is_hidden


def test_summary():
    """Of 512 + 128 + 256 bytes that move in the loop, 128 are waited for.

    The first of these stands twice, where it moves beside others and where its end is waited for.
    """
    told = hlo.summary(TEXT)
    assert told["collectives"]["all-gather"] == {
        "hidden": 2,
        "exposed_in_loops": 1,
        "exposed_at_entry": 0,
    }
    assert told["collectives"]["all-reduce"]["exposed_at_entry"] == 1
    assert told["exposed_share"] == 128 / 896
    assert told["backward_gathers"] == [(128, "jit(step)/transpose(jvp(M))/layer/dot")]
    assert (told["kernels"], told["attention_kernels"]) == (1, 1)
    assert told["copies"] == [(2048, "jit(step)/cache")]


def test_a_program_without_collectives():
    told = hlo.summary(
        "ENTRY %main.1 (p: f32[2]) -> f32[2] {\n  ROOT %p = f32[2]{0} parameter(0)\n}"
    )
    assert told["collectives"] == {} and told["exposed_share"] == 0
