"""Responses with every token marked by how far student and teacher are apart there.

    python -m opd_jax.view --workdir=runs/popd                   before training, after it, and the teacher's own answers
    python -m opd_jax.view --workdir=runs/popd --step=50 --prompt="58+-++x3=" --prompt="12++--x2="
    python -m opd_jax.view --workdir=runs/vision --prompt="What stands there?" --image=photo.png
    python -m opd_jax.view --student=DIR --teacher=DIR --prompt="What is 2 + 2?"

Point at a token for what each model would have written in its place. The page goes to --out (by default view.html in the
workdir, or here), and is shown in short on the terminal; the numbers go to view.jsonl in the workdir, where
`python -m opd_jax.report` finds them. Without --prompt the first held-out problems are answered, or the first of the training data where
there are none. Student and teacher read the same prompt, but where the run's teacher sees a crop of the student's image. A run of a masked diffusion model answers by denoising, and every token is scored
on the canvas to which it was committed.
"""

import dataclasses
import pathlib
from typing import Any

from absl import flags

from opd_jax import config as configs
from opd_jax.errors import InputError
from opd_jax.runtime import cli


def define(values: flags.FlagValues) -> None:
  """Adds the command's own flags."""
  flags.DEFINE_string("workdir", None, "a run's directory", flag_values=values)
  flags.DEFINE_integer("step", None, "which checkpoint of the workdir; the last by default", flag_values=values)
  flags.DEFINE_string("student", None, "without a workdir: a model directory, or builtin:NAME", flag_values=values)
  flags.DEFINE_string("teacher", None, "likewise; of a run, instead of its teacher", flag_values=values)
  flags.DEFINE_multi_string("prompt", [], "a text to answer; may be given several times", flag_values=values)
  flags.DEFINE_multi_string(
    "image", [], "of a run whose prompts have images: one for each --prompt", flag_values=values
  )
  flags.DEFINE_integer("prompts", 3, "how many problems of the run are answered without --prompt", flag_values=values)
  flags.DEFINE_integer("max-tokens", None, "of a response; of a run as in its evaluation, or 256", flag_values=values)
  flags.DEFINE_float("temperature", None, "of a run as in its evaluation, or 1", flag_values=values)
  flags.DEFINE_integer("top", 5, "how many alternatives of each model are shown at a token", flag_values=values)
  flags.DEFINE_string("out", None, "where the page goes: FILE.html", flag_values=values)


def run(values: flags.FlagValues, config) -> None:
  """Answers the prompts, scores the answers, and writes and shows them.

  Raises:
    InputError: nothing or too much to view, or an --out that cannot be written.
  """
  from opd_jax.data import branched, scored
  from opd_jax.reports import graphs, tokens
  from opd_jax.runtime import bucket

  if bool(values.workdir) == bool(values.student):
    raise InputError(
      "Name what to view: either --workdir=DIR (a run), or --student=DIR, --teacher=DIR and --prompt=TEXT."
    )
  _check_numbers(values)
  directory = bucket.MirroredDir(values.workdir) if values.workdir else None
  out = _page_path(values.out, directory)
  if directory:
    title, notes, responses = _of_run(values, config, directory)
  else:
    title, notes, responses = _of_models(values)
  try:
    drawn = branched.read(directory.path / branched.FILE) if directory else []  # of rollouts that branch
    out.write_text(
      tokens.page(responses, title, notes, graphs.framed(drawn) if drawn else ""), encoding="utf-8", errors="replace"
    )
  except OSError as e:
    raise InputError(f"--out={out} cannot be written ({e.strerror}); give another file.") from None
  if directory:
    scored.write(directory.path / scored.VIEW, responses)
    directory.push()
  tokens.show(responses)
  print(f"wrote {out}")


def _check_numbers(values: flags.FlagValues) -> None:
  """Refuses counts and temperatures that mean nothing."""
  length = values["max-tokens"].value
  too_short = length is not None and length < 1
  if values.prompts < 1 or values.top < 0 or too_short or (values.temperature or 0) < 0:
    raise InputError("--prompts and --max-tokens have to be at least 1, --top and --temperature at least 0.")


def _page_path(out: str | None, directory) -> pathlib.Path:
  """Finds where the page goes, before anything is computed."""
  path = configs.expanded_path(out) if out else (directory.path if directory else pathlib.Path()) / "view.html"
  if path.is_dir():
    raise InputError(f"--out={path} is a directory; name a file in it, such as {path / 'view.html'}.")
  if out and not path.parent.is_dir():
    raise InputError(f"--out={path} cannot be written: there is no directory {path.parent}.")
  return path


def _of_models(values: flags.FlagValues) -> tuple[str, list[str], list[Any]]:
  """Scores the answers of a student and a teacher that are named."""
  from opd_jax.analysis import loaded, notebook
  from opd_jax.analysis.score import Prompts

  if not values.teacher or not values.prompt:
    raise InputError("--student needs a teacher and a prompt beside it: --teacher=DIR --prompt=TEXT.")
  if values.step is not None:
    raise InputError("--step is of a run's checkpoint, and there is no --workdir; leave it out.")
  student = loaded.load_model(values.student)
  _check_causal(values.student, student)
  teacher = loaded.load_model(values.teacher, mesh=student.mesh)
  _check_causal(values.teacher, teacher)
  prompts = (Prompts(notebook.render_prompts(student, values.prompt, None)),) * 2
  temperature = 1.0 if values.temperature is None else values.temperature
  length = values["max-tokens"].value or 256
  found = [
    _answered(student, teacher, student, prompts, length, temperature, values.top, "student"),
    _answered(teacher, teacher, student, prompts, length, temperature, values.top, "teacher", own=1),
  ]
  return f"{values.student} and {values.teacher}", [_note(length, temperature)], _by_prompt(found)


def _check_causal(name: str, model) -> None:
  """Refuses a model that denoises, since how it does is for the config of a run to say."""
  if not model.spec.cfg.causal:
    raise InputError(
      f"{name} is a masked diffusion model, and in how many steps and blocks it denoises is for the config of a run to say; view a run of it "
      "(--workdir=DIR, and --teacher=DIR for another teacher), or the canvases that log.rollouts writes while it trains."
    )


def _of_run(values: flags.FlagValues, config, directory) -> tuple[str, list[str], list[Any]]:
  """Scores the answers of a run's student before training and after, and of its teacher."""
  from opd_jax import checks, inputs
  from opd_jax.analysis import loaded
  from opd_jax.recipes import base as recipes
  from opd_jax.runtime import workdir
  from opd_jax.runtime.programs import use_cache

  checks.check(config)
  name = values.teacher or next(iter(configs.teacher_names(config)), "")
  if not name:
    raise InputError(f"The run {directory.name} has no teacher to compare with; name one: --teacher=DIR.")
  step = workdir.last_checkpoint(directory) if values.step is None else values.step
  if step is None:
    raise InputError(f"The run {directory.name} has no checkpoint yet: wait for the first (checkpoint.every).")
  after = loaded.load_model(values.workdir, step=step)
  use_cache(config.compile_cache, directory.root)
  recipe = recipes.make(inputs.load_student(config, after.mesh))
  temperature = config.eval.temperature if values.temperature is None else values.temperature
  length = values["max-tokens"].value or config.eval.max_tokens or configs.response_len(config)
  problems, source = _problems_of(values, config, after)
  untrained = recipe.models(recipe.init(), recipe.frozen(teachers=False))["student"]
  before = dataclasses.replace(after, params=untrained)
  teacher = before if name == configs.INITIAL else loaded.load_model(name, mesh=after.mesh)
  ask = (_prompts_of(config, problems, after, teacher), length, temperature, values.top)
  found = [
    [dataclasses.replace(r, step=0) for r in _answered(before, teacher, before, *ask, "student before training")],
    [dataclasses.replace(r, step=step) for r in _answered(after, teacher, after, *ask, f"student after step {step}")],
    [dataclasses.replace(r, step=step) for r in _answered(teacher, teacher, after, *ask, "teacher", own=1)],
  ]
  notes = [f"{source}, teacher {name}. {_note(length, temperature)}"]
  if not after.spec.cfg.causal:
    notes.append(
      "Answers are denoised, and each token is scored on the canvas to which it was committed: both models read what stood there then, and the "
      "teacher nothing of the answer's end."
    )
  notes.append(f"The teacher's own answers are scored under the student after step {step}.")
  return f"{directory.name}, step {step}", notes, _by_prompt(found)


def _problems_of(values: flags.FlagValues, config, student) -> tuple[Any, str]:
  """Finds the problems to answer, as the run renders them, and where they come from."""
  from opd_jax import inputs
  from opd_jax.analysis import notebook
  from opd_jax.data.problems import Problems

  if values.image and not (config.data.image_field and len(values.image) == len(values.prompt)):
    raise InputError(
      "--image is for a run whose prompts have images, and needs a --prompt for each; give as many of the two, or leave it out."
    )
  if values.image:
    return _with_images(values, config, student), "Prompts and images of the command line"
  if values.prompt:
    return Problems(notebook.render_prompts(student, values.prompt, None), []), "Prompts of the command line"
  trained_on = configs.data_paths(config)[0]  # of several sources the first
  held_out = config.eval.path or (trained_on if trained_on.startswith(configs.TASK) else "")
  config = configs.override(config, {"eval.prompts": values.prompts})
  if config.data.draw_boxes != "none":
    config = configs.override(config, {"data.draw_boxes": "all"})  # as in training
  path = held_out or trained_on

  def load(config):
    return inputs.load_problems(config, path, student.tokenizer, student.rendering, held_out=bool(held_out))

  found = load(config)
  if held_out and config.context.kind == "crop":
    crops = load(configs.override(config, {"context.eval_view": "crop"}))
    found = dataclasses.replace(found, teacher_ids=tuple(crops.ids), teacher_images=crops.images)
  kind = "Held-out problems" if held_out else "Problems of the training data"
  return found.select([i < values.prompts for i in range(len(found.ids))]), f"{kind} of {path}"


def _with_images(values: flags.FlagValues, config, student) -> Any:
  """Renders the prompts and images of the command line."""
  from opd_jax.data.image_prompts import ImagePrompts
  from opd_jax.data.image_refs import ImageRef
  from opd_jax.data.problems import Problems

  refs = tuple((ImageRef(str(configs.expanded_path(path))),) for path in values.image)
  shown = ImagePrompts.from_config(config, student.spec.path, student.tokenizer)
  assert shown is not None
  prompts = list(zip(values.prompt, refs, strict=True))
  rows, faults = shown.render_each(prompts, student.tokenizer, student.rendering)
  ids = [row for row in rows if row is not None]
  if len(ids) < len(rows):
    number = rows.index(None)
    raise InputError(f"--prompt={values.prompt[number]!r} cannot be shown: {faults[number]}.")
  return Problems(ids, [], images=refs)


def _prompts_of(config, problems, student, teacher) -> tuple[Any, Any]:
  """Makes prompts as the student and as the teacher read them, with what each sees of their images."""
  from opd_jax import inputs
  from opd_jax.analysis.score import Prompts

  if not problems.images:
    both = Prompts(problems.ids)  # the teacher reads the same, whatever it is told in training
    return both, both
  found = inputs.load_images(config, student.spec, (teacher.spec,), problems, student.mesh)
  own = Prompts(problems.ids, problems.images, found.student)
  seen = found.teachers[0] if found.teachers else found.student
  crops = problems.teacher_images
  return own, Prompts(problems.teacher_ids if crops else problems.ids, crops or problems.images, seen)


def _answered(
  writer, teacher, student, prompts, length: int, temperature: float, top: int, of: str, own: int = 0
) -> list[Any]:
  """Lets one of the models answer the prompts, and scores the answers under student and teacher.

  Args:
    prompts: those of the student, and those of the teacher.
    own: which of these the writer reads.
  """
  from opd_jax.analysis import denoised_score, notebook, score
  from opd_jax.training.prompt_images import previews_of

  if not student.spec.cfg.causal:
    notebook.check_pair(student, teacher, denoised_score.REVERSE_KL, denoise=True)
    denoiser = denoised_score.denoiser_of(student, length, temperature)
    answers = denoised_score.denoise(writer, denoiser, prompts[0].ids, length)
    return denoised_score.score_denoised(student, teacher, denoiser, prompts[0].ids, answers, k=top, of=of)
  notebook.check_pair(student, teacher, "reverse_kl")
  answers = score.respond(writer, prompts[own], length, temperature)
  found = score.score_prompts(student, teacher, prompts, answers, k=top, of=of)
  seen, by_teacher = (prompts[i].refs or [()] * len(found) for i in range(2))
  return [
    dataclasses.replace(each, images=previews_of(refs), teacher_images=previews_of(others) if others != refs else [])
    for each, refs, others in zip(found, seen, by_teacher, strict=True)
  ]


def _by_prompt(found: list[list[Any]]) -> list[Any]:
  """Puts the responses to one prompt beside each other."""
  return [response for group in zip(*found, strict=True) for response in group]


def _note(length: int, temperature: float) -> str:
  return (
    f"Answers of at most {length} tokens at temperature {temperature:g}; the divergence is KL(student || teacher) over the whole "
    "vocabulary at temperature 1."
  )


if __name__ == "__main__":
  cli.main(run, __doc__ or "", define, cli.of_workdir)
