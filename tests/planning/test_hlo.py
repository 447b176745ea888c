"""The parser of HLO text, against small texts."""

import pytest

from opd_jax.planning import hlo
from opd_jax.planning.sources import Sources, operation
from tests.helpers.hlo_texts import FUSED, RING


def test_loops_run_as_often_as_their_constants_say():
  """A ring of 8 in steps of 2, whose bound is carried, inside of 3 layers."""
  module = hlo.parse(RING)
  assert module.entry == "main"
  assert module.trip_count("layers_body", module.computations["layers_body"]["while.1"]) == 4
  assert module.trip_count("main", module.computations["main"]["while.2"]) == 3


def test_a_trip_count_that_xla_knows_is_taken():
  text = RING.replace("body=%layers_body", 'body=%layers_body, backend_config={"known_trip_count":{"n":"28"}}')
  module = hlo.parse(text)
  assert module.trip_count("main", module.computations["main"]["while.2"]) == 28


@pytest.mark.parametrize(
  ("was", "becomes"),
  [
    ("direction=LT\n}\n\n%layers_body", "direction=NE\n}\n\n%layers_body"),  # another test
    ("%constant.7, %x)", "%x, %x)"),  # an unknown beginning
  ],
)
def test_what_depends_on_data_is_not_guessed(was, becomes):
  assert was in RING
  module = hlo.parse(RING.replace(was, becomes))
  assert module.trip_count("main", module.computations["main"]["while.2"]) is None


def test_an_instruction_over_several_lines_is_one():
  """A kernel's metadata has line breaks and a brace at the beginning of a line."""
  body = hlo.parse(RING).computations["layers_body"]
  assert body["get-tuple-element.8"].op_name == "jit(f)/while/body/attention/kernel"
  assert body["tuple.3"].root
  assert list(body)[-1] == "tuple.3"


def test_shapes_operands_and_calls():
  module = hlo.parse(FUSED)
  main = module.computations["main"]
  assert main["conditional.1"].operands == ("i", "z", "z")
  assert main["conditional.1"].called == [("branch", "narrow"), ("branch", "wide")]
  assert main["fusion.1"].called == [("calls", "beside")]
  start = main["async-collective-start.1"]
  assert hlo.arrays(start.shape) == ["bf16[128,64]", "bf16[128,256]"]
  assert hlo.shape_bytes(start.shape) == 2 * 128 * (64 + 256)


@pytest.mark.parametrize(
  ("array", "size"),
  [
    ("f32[]", 4),
    ("bf16[16,128]", 4096),
    ("pred[7]", 7),
    ("s4[6]", 3),
    ("u32[2]", 8),
    ("f8e4m3fn[10]", 10),
    ("token[]", 0),
  ],
)
def test_bytes(array, size):
  assert hlo.array_bytes(array) == size


def test_where_an_instruction_comes_from():
  """The innermost frame is of another file, and the one around it is ours."""
  module, sources = hlo.parse(RING), Sources(RING)
  permute = module.computations["ring_body"]["collective-permute-start.1"]
  assert sources.line(permute) == "models/decoder.py:137 layer"
  assert sources.line(module.computations["main"]["x"]) == ""


@pytest.mark.parametrize(
  ("name", "expected"),
  [
    ("jit(rollout)/cond/branch_1_fun/while/body/decode/qkv/dot_general", "decode/qkv/dot_general"),
    (
      "jit(update)/while/body/transpose(jvp())/while/body/closed_call/checkpoint/feed_forward/mul",
      "backward/feed_forward/mul",
    ),
    ("", ""),
  ],
)
def test_operations_read_without_what_tracing_adds(name, expected):
  assert operation(name) == expected


def test_no_text_is_no_error():
  module = hlo.parse("")
  assert module.entry == ""
  assert hlo.parse("HloModule nothing\n\n").computations == {}
