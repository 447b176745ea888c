"""`python -m opd_jax.view`: of a run, of two models, and what it refuses."""

import pytest

from opd_jax import config as configs
from opd_jax import trainer, view
from opd_jax.data import scored
from opd_jax.errors import InputError
from opd_jax.runtime import cli
from tests.conftest import small_config
from tests.helpers import masked_models

pytestmark = pytest.mark.usefixtures("shared_programs")


def run(*arguments: str) -> None:
  view.run(*cli.parse(["view", *arguments], "", view.define, cli.of_workdir))


@pytest.fixture(scope="module")
def workdir(tmp_path_factory, tiny):
  path = tmp_path_factory.mktemp("runs") / "opd"
  trainer.train(small_config(tiny, "opd", steps=2, **{"eval.every": 0, "checkpoint.every": 1}), path)
  return path


@pytest.mark.long
def test_a_run_is_seen_before_and_after_training_beside_its_teacher(workdir, capsys):
  run(f"--workdir={workdir}", "--prompts=2", "--max-tokens=12", "--top=2")
  found = scored.read(workdir / scored.VIEW)
  assert [(r.of, r.step) for r in found[:3]] == [
    ("student before training", 0),
    ("student after step 2", 2),
    ("teacher", 2),
  ]
  assert [found[0].prompt] * 3 + [found[3].prompt] * 3 == [r.prompt for r in found]
  assert all(r.divergence and len(r.divergence) == len(r.tokens) <= 12 for r in found)
  assert all(len(top) == 2 for r in found for top in r.teacher_top or ())
  page = (workdir / "view.html").read_text()
  assert page.count("<article>") == 6
  assert f"wrote {workdir / 'view.html'}" in capsys.readouterr().out


@pytest.mark.long
def test_a_checkpoint_is_chosen_by_its_step_and_a_prompt_by_hand(workdir, tmp_path):
  run(
    f"--workdir={workdir}", "--step=1", "--prompt=58+-++x3=", "--max-tokens=12", "--top=2", f"--out={tmp_path}/x.html"
  )
  found = scored.read(workdir / scored.VIEW)
  assert [r.of for r in found] == ["student before training", "student after step 1", "teacher"]
  assert {r.prompt for r in found} == {"58+-++x3="}
  assert (tmp_path / "x.html").is_file()


def test_two_models_are_seen_without_a_run(tiny, tmp_path, capsys):
  run(
    *(f"--{role}={tiny[role]}" for role in ("student", "teacher")),
    "--prompt=58+-++x3=",
    "--max-tokens=12",
    "--top=2",
    f"--out={tmp_path}/x.html",
  )
  assert (tmp_path / "x.html").read_text().count("<article>") == 2
  assert "prompt: 58+-++x3=" in capsys.readouterr().out


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    ([], "either --workdir=DIR"),
    (["--student=builtin:student"], "needs a teacher and a prompt"),
    (["--student=builtin:student", "--teacher=builtin:teacher", "--prompt=1", "--step=3"], "--step is of a run"),
    (["--student=builtin:student", "--prompts=0"], "at least 1"),
    (["--student=builtin:student", "--max-tokens=0"], "at least 1"),
    (["--student=builtin:student", "--out=/nowhere/x.html"], "there is no directory"),
    (["--student=builtin:student", "--out=/"], "is a directory"),
  ],
)
def test_what_cannot_be_viewed_is_refused(arguments, message):
  with pytest.raises(InputError, match=message):
    run(*arguments)


def test_a_run_without_a_checkpoint_is_told_to_wait(workdir, tmp_path):
  (tmp_path / "config.json").write_bytes((workdir / "config.json").read_bytes())
  with pytest.raises(InputError, match="has no checkpoint yet"):
    run(f"--workdir={tmp_path}")


def test_a_run_without_a_teacher_is_told_to_name_one(workdir):
  values, _ = cli.parse(["view", f"--workdir={workdir}"], "", view.define, cli.of_workdir)
  with pytest.raises(InputError, match="has no teacher to compare with"):
    view.run(values, configs.load("grpo"))


@pytest.mark.long
def test_a_run_that_denoises_is_seen_canvas_by_canvas(tmp_path, tiny):
  """A model of no run is refused, since nothing says how it denoises, and so is a teacher that writes from left to right."""
  model = masked_models.write(tmp_path / "model")
  trainer.train(masked_models.small(model, steps=1, **{"diffusion.accept": "all"}), tmp_path / "run")
  run(f"--workdir={tmp_path / 'run'}", "--prompts=1", "--top=2")
  found = scored.read(tmp_path / "run" / scored.VIEW)
  assert [(r.of, r.step) for r in found] == [
    ("student before training", 0),
    ("student after step 1", 1),
    ("teacher", 1),
  ]
  before, after, teacher = (r.divergence or () for r in found)
  assert all(x is not None and abs(x) < 1e-5 for x in before), "the teacher is the student before training"
  assert all(x is not None and x > 1e-5 for x in (*after, *teacher))
  page = (tmp_path / "run" / "view.html").read_text()
  assert page.count("<article>") == 3
  assert "each token is scored on the canvas to which it was committed" in page
  with pytest.raises(InputError, match="does not divide a canvas of 12 tokens"):
    run(f"--workdir={tmp_path / 'run'}", "--prompts=1", "--max-tokens=12")
  with pytest.raises(InputError, match="is a masked diffusion model, and in how many steps and blocks it denoises"):
    run(f"--student={model}", f"--teacher={model}", "--prompt=58+-++x3=")
  with pytest.raises(InputError, match="is a masked diffusion model, and in how many steps and blocks it denoises"):
    run(f"--student={tiny['student']}", f"--teacher={model}", "--prompt=58+-++x3=")
  with pytest.raises(InputError, match="writes from left to right, and is compared with a masked diffusion model"):
    run(f"--workdir={tmp_path / 'run'}", "--prompts=1", f"--teacher={tiny['teacher']}")
