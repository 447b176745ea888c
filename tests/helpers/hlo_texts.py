"""Optimised HLO as XLA writes it, small: what the parser has to understand of TPU programs."""

# A loop of two turns a step over a ring, whose bound lies in the loop's own tuple; around it a loop of 3 layers.
RING = """HloModule jit_f, is_scheduled=true, entry_computation_layout={(bf16[16,128]{1,0:T(8,128)(2,1)})->bf16[16,128]}

FileNames
1 "/home/someone/run.py"
2 "/usr/lib/python3/site-packages/opd_jax/models/decoder.py"

FunctionNames
1 "<module>"
2 "hidden.<locals>.layer"

FileLocations
1 {file_name_id=1 function_name_id=1 line=3 end_line=3 column=0 end_column=0}
2 {file_name_id=2 function_name_id=2 line=137 end_line=137 column=6 end_column=6}

StackFrames
1 {file_location_id=1 parent_frame_id=1}
2 {file_location_id=2 parent_frame_id=2}
3 {file_location_id=1 parent_frame_id=3}

%ring_cond (wide.param: (bf16[16,128], u32[], u32[])) -> pred[] {
  %wide.param = (bf16[16,128]{1,0:T(8,128)(2,1)S(1)}, u32[]{:T(128)}, u32[]{:T(128)}) parameter(0)
  %get-tuple-element.1 = u32[]{:T(128)} get-tuple-element(%wide.param), index=1
  %get-tuple-element.2 = u32[]{:T(128)} get-tuple-element(%wide.param), index=2
  ROOT %compare.1 = pred[]{:T(512)} compare(%get-tuple-element.1, %get-tuple-element.2), direction=LT
}

%ring_body (wide.param.1: (bf16[16,128], u32[], u32[])) -> (bf16[16,128], u32[], u32[]) {
  %wide.param.1 = (bf16[16,128]{1,0:T(8,128)(2,1)S(1)}, u32[]{:T(128)}, u32[]{:T(128)}) parameter(0)
  %get-tuple-element.3 = bf16[16,128]{1,0:T(8,128)(2,1)S(1)} get-tuple-element(%wide.param.1), index=0
  %get-tuple-element.4 = u32[]{:T(128)} get-tuple-element(%wide.param.1), index=1
  %get-tuple-element.5 = u32[]{:T(128)} get-tuple-element(%wide.param.1), index=2
  %constant.2 = u32[]{:T(128)} constant(2)
  %add.1 = u32[]{:T(128)} add(%get-tuple-element.4, %constant.2)
  %collective-permute-start.1 = (bf16[16,128]{1,0:T(8,128)(2,1)S(1)}, bf16[16,128]{1,0:T(8,128)(2,1)S(1)}, u32[]{:S(2)}, u32[]{:S(2)}) collective-permute-start(%get-tuple-element.3), channel_id=8, source_target_pairs={{0,1},{1,2},{2,3},{3,0}}, metadata={op_name="jit(f)/while/body/qkv/dot_general" stack_frame_id=3}
  %collective-permute-done.1 = bf16[16,128]{1,0:T(8,128)(2,1)S(1)} collective-permute-done(%collective-permute-start.1)
  ROOT %tuple.1 = (bf16[16,128]{1,0:T(8,128)(2,1)S(1)}, u32[]{:T(128)}, u32[]{:T(128)}) tuple(%collective-permute-done.1, %add.1, %get-tuple-element.5)
}

%layers_cond (p.1: (s32[], bf16[16,128])) -> pred[] {
  %p.1 = (s32[]{:T(128)}, bf16[16,128]{1,0:T(8,128)(2,1)}) parameter(0)
  %constant.3 = s32[]{:T(128)} constant(3)
  %get-tuple-element.6 = s32[]{:T(128)} get-tuple-element(%p.1), index=0
  ROOT %compare.2 = pred[]{:T(512)} compare(%get-tuple-element.6, %constant.3), direction=LT
}

%layers_body (p.2: (s32[], bf16[16,128])) -> (s32[], bf16[16,128]) {
  %p.2 = (s32[]{:T(128)}, bf16[16,128]{1,0:T(8,128)(2,1)}) parameter(0)
  %get-tuple-element.7 = s32[]{:T(128)} get-tuple-element(%p.2), index=0
  %get-tuple-element.8 = bf16[16,128]{1,0:T(8,128)(2,1)} get-tuple-element(%p.2), index=1, frontend_attributes={kernel_metadata={
"xprof_metadata":"{\\"block_q\\": 128}"
}}, metadata={op_name="jit(f)/while/body/attention/kernel" stack_frame_id=3}
  %get-tuple-element.11 = bf16[16,128]{1,0:T(8,128)(2,1)} get-tuple-element(%p.2), index=1
  %constant.4 = s32[]{:T(128)} constant(1)
  %add.2 = s32[]{:T(128)} add(%get-tuple-element.7, %constant.4)
  %constant.5 = u32[]{:T(128)} constant(0)
  %constant.6 = u32[]{:T(128)} constant(8)
  %copy.1 = u32[]{:T(128)} copy(%constant.6)
  %tuple.2 = (bf16[16,128]{1,0:T(8,128)(2,1)}, u32[]{:T(128)}, u32[]{:T(128)}) tuple(%get-tuple-element.8, %constant.5, %copy.1)
  %while.1 = (bf16[16,128]{1,0:T(8,128)(2,1)S(1)}, u32[]{:T(128)}, u32[]{:T(128)}) while(%tuple.2), condition=%ring_cond, body=%ring_body
  %get-tuple-element.9 = bf16[16,128]{1,0:T(8,128)(2,1)} get-tuple-element(%while.1), index=0
  ROOT %tuple.3 = (s32[]{:T(128)}, bf16[16,128]{1,0:T(8,128)(2,1)}) tuple(%add.2, %get-tuple-element.9)
}

ENTRY %main (x: bf16[16,128]) -> bf16[16,128] {
  %x = bf16[16,128]{1,0:T(8,128)(2,1)} parameter(0), metadata={op_name="params[\\'embed\\']"}
  %constant.7 = s32[]{:T(128)} constant(0)
  %tuple.4 = (s32[]{:T(128)}, bf16[16,128]{1,0:T(8,128)(2,1)}) tuple(%constant.7, %x)
  %while.2 = (s32[]{:T(128)}, bf16[16,128]{1,0:T(8,128)(2,1)}) while(%tuple.4), condition=%layers_cond, body=%layers_body, metadata={op_name="jit(f)/while" stack_frame_id=2}
  ROOT %get-tuple-element.10 = bf16[16,128]{1,0:T(8,128)(2,1)} get-tuple-element(%while.2), index=1
}
"""

# One all-gather in three pieces, each fused with other work; an all-reduce that is a reduce-scatter; a conditional.
FUSED = """HloModule jit_g

%async_start (param_0.1: bf16[128,64]) -> (bf16[128,64], bf16[128,256]) {
  %param_0.1 = bf16[128,64]{1,0} parameter(0)
  %all-gather.1 = bf16[128,256]{1,0} all-gather(%param_0.1), channel_id=7, replica_groups=[1,4]<=[4], dimensions={1}, frontend_attributes={chain_id="8"}
  ROOT %tuple.1 = (bf16[128,64]{1,0}, bf16[128,256]{1,0}) tuple(%param_0.1, %all-gather.1)
}

%beside (param_0.2: bf16[128,64]) -> bf16[128,256] {
  %param_0.2 = bf16[128,64]{1,0} parameter(0)
  ROOT %all-gather.2 = bf16[128,256]{1,0} all-gather(%param_0.2), channel_id=7, replica_groups=[1,4]<=[4], dimensions={1}, frontend_attributes={chain_id="8"}
}

%async_done (param_0.3: bf16[128,64]) -> bf16[128,256] {
  %param_0.3 = bf16[128,64]{1,0} parameter(0)
  ROOT %all-gather.3 = bf16[128,256]{1,0} all-gather(%param_0.3), channel_id=7, replica_groups=[1,4]<=[4], dimensions={1}, frontend_attributes={chain_id="8"}
}

%all-reduce-scatter.1 (param_0.4: f32[64,32]) -> f32[16,32] {
  %param_0.4 = f32[64,32]{1,0} parameter(0)
  %all-reduce.1 = f32[64,32]{1,0} all-reduce(%param_0.4), channel_id=9, replica_groups={{0,1,2,3}}, use_global_device_ids=true, to_apply=%sum
  %constant.1 = s32[] constant(0)
  ROOT %dynamic-slice.1 = f32[16,32]{1,0} dynamic-slice(%all-reduce.1, %constant.1, %constant.1), dynamic_slice_sizes={16,32}
}

%sum (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %add.1 = f32[] add(%a, %b)
}

%narrow (param_1: f32[8]) -> f32[8] {
  %param_1 = f32[8]{0} parameter(0)
  ROOT %all-reduce.2 = f32[8]{0} all-reduce(%param_1), channel_id=1, replica_groups={}, to_apply=%sum
}

%wide (param_2: f32[8]) -> f32[8] {
  %param_2 = f32[8]{0} parameter(0)
  %all-reduce.3 = f32[8]{0} all-reduce(%param_2), channel_id=1, replica_groups={}, to_apply=%sum
  ROOT %all-reduce.4 = f32[8]{0} all-reduce(%all-reduce.3), channel_id=1, replica_groups={}, to_apply=%sum
}

ENTRY %main (x: bf16[128,64], y: f32[64,32], z: f32[8], i: s32[]) -> f32[8] {
  %x = bf16[128,64]{1,0} parameter(0)
  %y = f32[64,32]{1,0} parameter(1)
  %z = f32[8]{0} parameter(2)
  %i = s32[] parameter(3)
  %async-collective-start.1 = (bf16[128,64]{1,0}, bf16[128,256]{1,0}) fusion(%x), kind=kCustom, calls=%async_start
  %fusion.1 = bf16[128,256]{1,0} fusion(%x), kind=kOutput, calls=%beside
  %async-collective-done.1 = bf16[128,256]{1,0} fusion(%x), kind=kCustom, calls=%async_done
  %fusion.2 = f32[16,32]{1,0} fusion(%y), kind=kCustom, calls=%all-reduce-scatter.1
  ROOT %conditional.1 = f32[8]{0} conditional(%i, %z, %z), branch_computations={%narrow, %wide}
}
"""

LIVE_RANGES = """HloLiveRange (max 31):
  BufferLiveRange:
    x{}:0-9
  Live ranges at 7 (peak):
    collective-permute-done.1{}: 4096 bytes (cumulative: 4096 bytes)
    while.2{1}: 4096 bytes (cumulative: 8192 bytes)
    x{}: 4096 bytes (cumulative: 12288 bytes)
    get-tuple-element.3{}: 4096 bytes (cumulative: 16384 bytes)
    get-tuple-element.11{}: 4096 bytes (cumulative: 20480 bytes)
    constant.7{}: 4 bytes (cumulative: 20484 bytes)
  Stack trace breakdown for peak usage: 20 484 bytes
"""

ASSIGNMENT = """BufferAssignment:
allocation 0: size 512, thread-local:
 value: <37 select.6 @0> (size=512,offset=0): pred[]{:T(512)}
allocation 1: size 4096, parameter 0, shape |bf16[16,128]| at ShapeIndex {}:
 value: <91 x @0> (size=4096,offset=0): bf16[16,128]{1,0:T(8,128)(2,1)}
allocation 2: size 1024, parameter 1, shape |f32[256]| at ShapeIndex {}, maybe-live-out:
allocation 3: size 2048, output shape is |bf16[16,64]|, maybe-live-out:
allocation 4: size 512, constant:
allocation 5: size 99999, color 1, preallocated-temp:
allocation 6: size 8192, preallocated-temp:
"""
