"""Arguments of chat templates: on the command line, in configs, and in what is saved of them."""

import json

import pytest
from absl import flags

from opd_jax import checks, config
from opd_jax.errors import InputError
from opd_jax.runtime import cli, workdir
from opd_jax.runtime.bucket import MirroredDir

KEY = "data.template_args"


def parse(*argv: str) -> dict:
  _, c = cli.parse(
    ["train", *argv], "", lambda values: flags.DEFINE_string("workdir", None, "", flag_values=values), cli.of_method
  )
  checks.check(c)
  return c.data.template_args.to_dict()


@pytest.mark.parametrize(
  ("text", "value"),
  [
    ("False", False),
    ("true", True),
    ("3", 3),
    ("0.5", 0.5),
    ("high", "high"),
    ("26 Jul 2024", "26 Jul 2024"),
    ('"7"', "7"),
    ("'x'", "x"),
    ("a=b", "a=b"),
    ("", ""),
  ],
)
def test_a_value_has_the_type_that_is_written(text, value):
  (found,) = parse(f"--config.{KEY}.name={text}").values()
  assert (found, type(found)) == (value, type(value))


def test_arguments_are_given_one_by_one_or_together():
  assert parse() == {}
  assert parse(f'--config.{KEY}={{"a": false, "b": 1}}') == {"a": False, "b": 1}
  assert parse(f"--config.{KEY}={{'a': False}}") == {"a": False}, "as --help prints them"
  assert parse(f'--config.{KEY}={{"a": 1}}', f"--config.{KEY}.b=2", "--config.steps=3") == {"a": 1, "b": 2}
  assert parse(f"--config.{KEY}.b=2", f"--config.{KEY}.b=x", "--config=popd") == {"b": "x"}
  assert parse(f'--config.{KEY}={{"a": 1}}', f"--config.{KEY}={{}}") == {}


@pytest.mark.parametrize(
  ("argument", "says"),
  [
    (f"{KEY}=3", "config.data.template_args cannot be '3'"),
    (f"{KEY}.a", "with an equals sign"),
    (f"{KEY}.tools=3", "config.data.template_args names 'tools'"),
    (f"{KEY}.a=[1]", r"config.data.template_args.a is \[1\]"),
    (f"{KEY}.a=null", "config.data.template_args.a is None"),
    ("data.template_arg.a=1", "There is no config key 'data.template_arg.a'"),
  ],
)
def test_what_cannot_be_given_is_refused(argument, says):
  with pytest.raises(InputError, match=says):
    parse(f"--config.{argument}")


def test_help_shows_them(capsys):
  with pytest.raises(SystemExit):
    parse("--help", f"--config.{KEY}.a=False")
  assert f"  {KEY} = {{'a': False}}    arguments of the chat template" in capsys.readouterr().out


def test_configs_of_files_and_of_python_set_them():
  c = config.default()
  c.data.template_args = {"a": False}
  assert config.flat(c.to_dict())[KEY] == {"a": False}
  c = config.override(c, {f"{KEY}.b": 0.5})
  assert config.get(c, KEY).to_dict() == {"a": False, "b": 0.5}
  assert config.override(c, {KEY: {}}).data.template_args.to_dict() == {}
  assert config.with_recipe(c, "ccopd").data.template_args.to_dict() == {"a": False, "b": 0.5}
  assert config.has(c, KEY)
  assert config.has(c, f"{KEY}.other")
  with pytest.raises(InputError, match="it has to be a dict of JSON values"):
    config.override(c, {KEY: 3})


def test_they_are_part_of_what_a_run_is(tmp_path):
  none, told = config.default(), config.override(config.default(), {f"{KEY}.a": False})
  workdir.open_(MirroredDir(tmp_path), told)
  again = workdir.load_config(tmp_path)
  assert again.to_dict() == told.to_dict()
  assert KEY not in config.changed(none)
  assert config.changed(told)[KEY] == {"a": False}
  assert workdir.digest(none, {}) != workdir.digest(told, {}) == workdir.digest(again, {})
  assert config.different(none, told) == {KEY: ({}, {"a": False})}
  former = json.loads(config.to_json(none))
  del former["data"]["template_args"], former["data"]["teacher_template_args"]
  assert config.different(config.from_saved(former), none) == {}
