"""The table of keys: complete, equal to what the code knows, and what the check, --help and the page say."""

import json
import math

import numpy as np
import pytest

from opd_jax import checks, config, trainer
from opd_jax.config import page
from opd_jax.errors import InputError
from opd_jax.horizon import schedule
from opd_jax.models import decoder, kernels, lora, rounding
from opd_jax.objectives import advantage, divergence, kl_estimators, surrogates, token_weights
from opd_jax.runtime import cli

EVERY = [(recipe, name) for recipe in config.recipe_names() for name in config.table(recipe)]


def test_every_key_has_a_meaning_and_values_that_its_default_is_one_of():
  for recipe, name in EVERY:
    key = config.table(recipe)[name]
    assert key.meaning, name
    assert key.notation, name
    assert key.allowed.allows(key.default), name


def test_the_choices_are_those_of_the_code():
  """The table stands below the code that has them, so that they are written twice."""
  known = {
    "horizon.kind": schedule.KINDS,
    "objective.kind": {*divergence.DIVERGENCES, *kl_estimators.ESTIMATORS},
    "objective.future": kl_estimators.FUTURES,
    "surrogate.kind": (surrogates.IMPORTANCE, *surrogates.SURROGATES),
    "surrogate.divergence": surrogates.DIVERGENCES,
    "advantage.kind": ("auto", *advantage.KINDS),
    "weights.scope": token_weights.SCOPES,
    "rollout.precision": rounding.PRECISIONS,
    "objective.support": divergence.SUPPORTS,
    "objective.tail": divergence.TAILS,
    "objective.normaliser": token_weights.NORMALISERS,
    "weights.kind": token_weights.KINDS,
    "importance.kind": kl_estimators.IMPORTANCE,
    "importance.level": kl_estimators.LEVELS,
    "attention": kernels.KINDS,
    "remat": decoder.REMAT,
    "lora.targets": lora.INPUTS,
  }
  table = config.table()
  assert {name: set(table[name].allowed.words) for name in known} == {name: set(words) for name, words in known.items()}


BAD = {
  bool: (None, 1, "True", np.array([True, False]), (True,)),
  int: (None, 1.5, "8", (1,), True, math.nan, 2**63, -(2**63), {}),
  float: (None, "1", (1.0,), True, math.nan, math.inf, -math.inf, 10**400),
  str: (None, 5, ("a",), b"a", "half \ud800 of a pair", np.zeros((2, 2))),
  tuple: (None, 5, "DIR", (None,), ((),), (math.nan,), {1: 2}),
}


@pytest.mark.long
def test_every_key_refuses_values_of_another_type_and_numbers_that_are_not_finite():
  """In one sentence that names key, value and what is allowed, whether set by an override or in place."""
  recipe = "ccopd"  # has all keys
  usual = config.default(recipe)
  for name, key in config.table(recipe).items():
    if isinstance(key.default, dict):
      continue
    for value in BAD[type(key.default)]:
      with pytest.raises(InputError) as e:
        checks.check(config.override(usual, {name: value}))
      assert "\n" not in str(e.value)
      assert len(str(e.value)) < 400
      assert "There is no recipe" in str(e.value) or str(e.value).startswith(f"config.{name} "), name
      c = usual.copy_and_resolve_references()
      try:
        config.put(c, name, value)
      except OverflowError:
        continue
      if isinstance(config.get(c, name), type(value)):  # ml_collections makes numbers of some
        with pytest.raises(InputError, match=rf"config.{name}|There is no recipe"):
          checks.check(c)


@pytest.mark.parametrize(
  ("key", "value", "says"),
  [
    ("batch", 2**63, "batch is 9223372036854775808; it has to be a whole number between 1 and 1048576"),
    ("optimizer.clip", math.nan, "optimizer.clip is nan; it has to be a number between 0 and 1000000"),
    ("optimizer.lr", math.inf, "optimizer.lr is inf; it has to be a number above 0 and at most 1000"),
    ("optimizer.eps", 0.0, "optimizer.eps is 0.0; it has to be a number between 1e-30 and 1"),
    ("optimizer.b2", 1 - 1e-9, "optimizer.b2 is 0.999999999; it has to be a number between 0 and 0.999999"),
    ("data.widths", math.nan, "data.widths is nan; it has to be 0 or a number above 1 and at most 1000"),
    ("eval.pass_at", (1, 2.5), r"eval.pass_at holds 2.5; it has to be a tuple of whole numbers between 1 and 65536"),
    ("teacher_weights", "half", r"teacher_weights is 'half'; it has to be a tuple of numbers between 0 and 1000000"),
    ("horizon.kind", 7, "horizon.kind is 7; it has to be one of 'full', 'truncated'"),
    ("seed", 2**32, "seed is 4294967296; it has to be a whole number at least -2147483648 and below 4294967296"),
  ],
)
def test_a_wrong_value_is_answered_with_what_is_allowed(key, value, says):
  with pytest.raises(InputError, match=f"config.{says}"):
    checks.check(config.override(config.default(), {key: value}))


def test_nothing_is_written_for_a_number_that_is_not_finite(small, tmp_path):
  with pytest.raises(InputError, match=r"optimizer\.clip is nan"):
    trainer.train(small(**{"optimizer.clip": math.nan}), tmp_path / "w")
  assert not (tmp_path / "w").exists()


def test_steps_and_evaluations_are_of_as_many_tokens_as_can_be_counted():
  with pytest.raises(
    InputError, match=r"batch=65536 x rollouts_per_prompt=128 x horizon.max=256 is 2,147,483,648 tokens"
  ):
    checks.check(config.override(config.default(), {"batch": 2**16, "rollouts_per_prompt": 128}))
  with pytest.raises(InputError, match=r"eval.batch=128 x eval.k=65536 x eval.max_tokens=256"):
    checks.check(config.override(config.default(), {"eval.k": 2**16}))


@pytest.mark.parametrize(
  ("changes", "says"),
  [
    ({"decay_updates": 5}, "optimizer.decay_updates is 5, which does nothing with optimizer.schedule='constant'"),
    ({"min_lr_ratio": 0.1}, "optimizer.min_lr_ratio is 0.1, which does nothing"),
    ({"schedule": "cosine", "warmup": 4}, "of which 4 are the warm-up's, so that optimizer.decay_updates=36 falls to"),
    (
      {"schedule": "linear", "decay_updates": 30},
      "decay_updates is 30, behind which the learning rate is 0, .* raise it to 40",
    ),
  ],
)
def test_a_learning_rate_falls_to_the_end_of_a_run_and_not_before_it(changes, says):
  c = config.override(
    config.default(), {"steps": 10, "mini_batches": 2, "updates_per_rollout": 2, "optimizer.warmup": 0}
  )
  with pytest.raises(InputError, match=says):
    checks.check(config.override(c, {f"optimizer.{key}": value for key, value in changes.items()}))
  for meant in ({"decay_updates": 40}, {"decay_updates": 30, "min_lr_ratio": 0.1}):
    checks.check(config.override(c, {f"optimizer.{k}": v for k, v in {"schedule": "cosine", **meant}.items()}))


@pytest.mark.parametrize(
  ("recipe", "changes", "updates"),
  [("codistillation", {"codistillation.phase_steps": 3}, 6), ("diffusion", {"diffusion.parts": 2}, 20)],
)
def test_a_fall_is_over_the_updates_that_a_recipe_makes(recipe, changes, updates):
  c = config.override(
    config.default(recipe), {"steps": 10, "optimizer.warmup": 0, "optimizer.schedule": "linear"} | changes
  )
  with pytest.raises(InputError, match=f"this run makes {updates}, .*optimizer.decay_updates={updates} falls"):
    checks.check(c)


def test_numbers_of_numpy_and_paths_are_kept_as_plain_values(tmp_path):
  values = {"batch": np.int64(8), "optimizer.lr": np.float32(0.5), "mixture.divergence": 2, "teacher_offload": np.True_}
  c = config.override(config.default(), values | {"eval.pass_at": [np.int32(1)], "student": tmp_path})
  checks.check(c)
  assert (c.batch, c.optimizer.lr, c.mixture.divergence, c.teacher_offload) == (8, 0.5, 2.0, True)
  assert [type(v) for v in (c.batch, c.optimizer.lr, c.mixture.divergence, c.teacher_offload)] == [
    int,
    float,
    float,
    bool,
  ]
  assert (c.eval.pass_at, c.student) == ((1,), str(tmp_path))
  assert json.loads(config.to_json(c))["batch"] == 8


@pytest.mark.parametrize(
  "text", ["batch=8.5", "batch=many", "teacher_offload=3", "eval.pass_at=('a',)", "optimizer.lr=nan"]
)
def test_the_command_line_gives_the_same_sentence(text):
  key = text.partition("=")[0]
  with pytest.raises(InputError, match=rf"config\.{key} (is|holds) .*; it has to be "):
    cli.parse(["train", f"--config.{text}"], "", lambda values: None, cli.of_method)


def test_help_has_the_values_of_every_key_beside_its_meaning(capsys):
  with pytest.raises(SystemExit):
    cli.parse(["train", "--config=ccopd", "--help"], "usage", lambda values: None, cli.of_method)
  lines = capsys.readouterr().out.splitlines()
  for name, key in config.table("ccopd").items():
    (line,) = [line for line in lines if line.startswith(f"  {name} = ")]
    assert key.meaning in line
    assert f"({key.notation})" in line


def test_the_page_has_the_table_as_it_is():
  text = page.PAGE.read_text(encoding="utf-8")
  assert text == page.with_tables(text), "python -m opd_jax.config writes it"


def test_configs_in_place_are_held_against_the_table():
  c = config.default()
  with c.unlocked():
    c.horizon.extra = 5
  with pytest.raises(InputError, match=r"no config key 'horizon.extra'"):
    config.check(c)
  c = config.default()
  with c.unlocked():
    del c.optimizer.clip
  with pytest.raises(InputError, match=r"config.optimizer.clip is missing"):
    config.check(c)


def test_a_config_file_with_a_value_of_another_type_is_named(tmp_path):
  file = tmp_path / "mine.py"
  file.write_text(
    "from opd_jax.config import default\ndef get_config():\n  c = default()\n  c.batch = '8'\n  return c\n"
  )
  with pytest.raises(InputError, match=r"mine.py fails: .*batch"):
    config.load(str(file))
  file.write_text("def get_config():\n  return 5\n")
  with pytest.raises(InputError, match=r"mine.py get_config\(\) returns 5"):
    config.load(str(file))
