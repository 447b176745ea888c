"""ZPPO from end to end: groups that never share a baseline, prompts with candidates, a teacher that writes, runs that are killed."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from opd_jax import config as configs
from opd_jax import inputs, tasks
from opd_jax.errors import InputError
from opd_jax.models import decoder
from opd_jax.recipes import base
from opd_jax.rollout.endpoint import TeacherSampler
from opd_jax.rollout.generate import decode
from opd_jax.trainer import open_run, train, train_run
from opd_jax.training import specs
from tests.helpers.credited_runs import SIZES, even, kept_credits
from tests.helpers.runs import leaves, read, without_time
from tests.rollout.test_endpoint import Server

pytestmark = pytest.mark.usefixtures("shared_programs", "some_are_right")
N = 4  # rollouts of a prompt
RIGHT = "22"
collected = functools.partial(kept_credits, "_collected")


class Scripted:
  """A teacher that says the same to everything, and remembers what it was asked."""

  def __init__(self, *says: str, short: str = "3"):
    self.says, self.short, self.tokens = says or (RIGHT,), short, 0
    self.calls: list[tuple] = []

  def sample(self, prompts, n: int, *, max_tokens: int, temperature: float, seed: int) -> list[list[str]]:
    self.calls.append((list(prompts), n, max_tokens, temperature, seed))
    says = self.says if n > 1 else (self.short,)
    self.tokens += len(prompts) * n
    return [list(itertools.islice(itertools.cycle(says), n)) for _ in prompts]


@pytest.fixture
def config(tiny):
  """A small config of the recipe: config(steps=1, **{"zone.replay": 0.0}); 4 new prompts, 2 of the buffer, 2 with candidates."""

  def make(**changes):
    sizes = SIZES | {"student": tiny["student"], "teacher": tiny["teacher"], "horizon.max": 12}
    sizes |= {"rollouts_per_prompt": N, "mini_batches": 2}
    sizes |= {"surrogate.dual_clip": 10.0, "advantage.kind": "reinforce_pp_nontrivial", "data.max_prompt": 16}
    sizes |= {"zone.replay": 0.5, "zone.augment": 0.5, "zone.tau": 0.75, "candidates.widths": 0.0}
    sizes |= {"candidates.compressor": "truncate", "candidates.max_prompt": 48, "candidates.max_tokens": 12}
    sizes |= {"candidates.bcq": "{prompt}{candidates}=", "candidates.ncq": "{prompt}{candidates}#"}
    sizes |= {"candidates.block": ":{text}", "candidates.hint": "{prompt}>{text}=", "zone.teacher_prompt": 64}
    return configs.override(configs.default("zone"), sizes | changes)

  return make


def opened(config, path, teacher: TeacherSampler | None = None):
  run = open_run(config, path)
  run.recipe.teacher.sampler = teacher
  return run


@pytest.mark.long
def test_a_step_has_new_prompts_those_of_the_buffer_and_prompts_with_candidates(config, tmp_path, monkeypatch):
  run = opened(config(), tmp_path / "w", Scripted())
  found = collected(run, monkeypatch)
  train_run(run)
  assert int(run.state.step) == 4 * 2
  records = read(tmp_path / "w", "train")
  assert [record["replayed"] for record in records] == [0, *[min(2, r["buffer"]) for r in records[:-1]]]
  for record, (of_step, experience, _) in zip(records, found, strict=True):
    asked = record["prompts_bcq"] + record["prompts_ncq"]
    assert asked == len(of_step.asked) <= 2
    assert record["empty_places"] == 8 - 4 - record["replayed"] - asked
    assert len(experience.rollout.mask) == 8 * N, "as many places always"
    assert sum(record["groups_by_solve_rate"]) == 4
    parts = ("plain_tokens", "reformulated_tokens", "teacher_tokens", "compression_tokens")
    assert record["step_tokens"] == sum(record[name] for name in parts)
    assert sum(record["by_position"]["count"]) == record["plain_tokens"] + record["reformulated_tokens"]
    assert record["logprob_gap"] < 1e-4, (
      "the ratio is 1: each response is scored under the prompt that it was drawn for"
    )
    assert record["buffer"] == sum(record["buffer_history"]["entered"]) - sum(record["buffer_history"]["graduated"])
  assert records[-1]["tokens"] == sum(record["step_tokens"] for record in records)
  assert any(record["prompts_bcq"] for record in records)
  assert any(record["grad_norm"] > 0 for record in records)


@pytest.mark.long
def test_three_groups_never_share_a_baseline(config, tmp_path, monkeypatch):
  """The advantage of every row, by hand: against its own group, and over the deviation of all groups that are not equal."""
  run = opened(config(), tmp_path / "w", Scripted())
  found = collected(run, monkeypatch)
  train_run(run)
  kinds = set()
  for of_step, experience, credit in found:
    texts = [r for judged in of_step.judged for r in judged.responses]
    reward = np.array([even(response.text) for response in texts], float).reshape(-1, N)
    centred = reward - reward.mean(axis=1, keepdims=True)
    deviation = centred[centred.any(axis=1)].std()
    advantage = np.asarray(credit.advantage).reshape(-1, N)
    np.testing.assert_allclose(advantage[: len(reward)], centred / (deviation + 1e-6), rtol=1e-5)
    assert not advantage[len(reward) :].any()
    assert not advantage[: len(reward)][~centred.any(axis=1)].any(), "exactly 0"
    assert np.asarray(credit.counted).reshape(-1, N).all(axis=1).tolist() == [True] * len(reward) + [False] * (
      8 - len(reward)
    )
    response, mask = np.asarray(experience.rollout.response), np.asarray(experience.rollout.mask)
    written = decode(run.inputs.tokenizer, response, mask, run.recipe.specs.sampling.stop_ids)
    assert written[: len(texts)] == [response.text for response in texts], "rewards stand beside their own rollouts"
    kinds |= {each.kind for each in of_step.asked}
  assert kinds == {"bcq", "ncq"}


@pytest.mark.long
def test_responses_are_scored_under_the_prompt_that_they_were_drawn_for(config, tmp_path, monkeypatch):
  run = opened(config(steps=1), tmp_path / "w", Scripted())
  params = jax.tree.map(np.asarray, run.state.params)
  found = collected(run, monkeypatch)
  train_run(run)
  ((of_step, experience, _),) = found
  cfg, rollout = run.recipe.specs.student.cfg, jax.tree.map(np.asarray, experience.rollout)
  first = len(of_step.questions)
  assert of_step.asked
  for place, each in enumerate(of_step.asked, first):
    row = place * N
    response = rollout.response[row][rollout.mask[row]]

    def logprob(prompt, response=response):
      ids = jnp.array([[*prompt, *response]])
      logits = decoder.unembed(params, decoder.hidden(params, cfg, ids, jnp.ones_like(ids, bool)))[0]
      of_tokens = jax.nn.log_softmax(logits[len(prompt) - 1 : -1])
      return of_tokens[np.arange(len(response)), response]

    recorded = rollout.behavior_logprob[row][rollout.mask[row]]
    np.testing.assert_allclose(logprob(each.ids), recorded, atol=1e-4)
    assert np.abs(logprob(run.inputs.train.ids[each.question]) - recorded).max() > 1e-2
    prompt = np.asarray(experience.prompts.prompt)[place][np.asarray(experience.prompts.prompt_mask)[place]]
    assert prompt.tolist() == each.ids


@pytest.mark.long
def test_a_teachers_words_stand_in_prompts_and_its_weights_in_no_update(config, tmp_path, monkeypatch):
  run = opened(config(steps=2), tmp_path / "w", teacher := Scripted())
  found = collected(run, monkeypatch)
  train_run(run)
  assert run.recipe.step.teachers == () == run.frozen.teachers
  asked = [(each, experience) for of_step, experience, _ in found for each in of_step.asked]
  assert any(each.kind == "bcq" for each, _ in asked)
  for each, _ in asked:
    text = run.inputs.tokenizer.decode(each.ids)
    blocks = text.removeprefix(run.inputs.train.prompts[each.question])[1:-1].split(":")
    if each.kind == "bcq":
      assert len(blocks) == 2
      assert len({len(block) for block in blocks}) == 1
      assert each.right == RIGHT
      assert sum(RIGHT.endswith(block) for block in blocks) >= 1
  questions = [prompts for prompts, *_ in teacher.calls]
  assert all(n == 4 and most == 12 and temperature == 1.0 for _, n, most, temperature, _ in teacher.calls)
  assert len({seed for *_, seed in teacher.calls}) == len(teacher.calls)
  assert all(len(prompts) <= 2 for prompts in questions), "those that are kept alone"


def test_audits_count_responses_that_repeat_a_candidates_answer(config, tmp_path, monkeypatch):
  run = opened(config(), tmp_path / "w", Scripted())
  found = collected(run, monkeypatch)
  train_run(run)
  for record, (of_step, *_) in zip(read(tmp_path / "w", "train"), found, strict=True):
    for kind in ("bcq", "ncq"):
      groups = [i for i, each in enumerate(of_step.asked) if each.kind == kind]
      rows = [(of_step.asked[i], of_step.of_asked.responses[i * N + j]) for i in groups for j in range(N)]
      if not rows:
        assert f"{kind}_repeats_wrong" not in record
        continue
      said = [(each, response.text if response.ended else "") for each, response in rows]
      repeated = np.mean([bool(text) and text in each.wrong for each, text in said])
      assert record[f"{kind}_repeats_wrong"] == pytest.approx(repeated)
      if kind == "bcq":
        copied = np.mean([bool(text) and text == each.right for each, text in said])
        assert record["bcq_repeats_right"] == pytest.approx(copied)
      assert record[f"reward_{kind}"] == pytest.approx(np.mean([even(response.text) for _, response in rows]))
  assert of_step.asked[0].repeats(["", "22", "5"])["right"][0] is False


def test_the_buffer_follows_plain_rollouts_alone(config, tmp_path, monkeypatch):
  """Prompts with candidates that are all answered right let no question go."""
  c = config(steps=3)
  monkeypatch.setitem(tasks.VERIFIERS, "chain", lambda response, *_, **__: response.endswith("22"))
  run = opened(c, tmp_path / "w", Scripted())
  judge = run.recipe._judge_asked

  def all_right(*args):
    found = judge(*args)
    return found._replace(columns=np.ones_like(found.columns), solved=np.ones_like(found.solved))

  monkeypatch.setattr(run.recipe, "_judge_asked", all_right)
  train_run(run)
  records = read(tmp_path / "w", "train")
  assert any(record.get("reward_bcq", record.get("reward_ncq")) == 1.0 for record in records)
  assert sum(records[-1]["buffer_history"]["graduated"]) == 0
  assert records[-1]["buffer"] == 12


# Behind plain rollouts, before the teacher, behind its answers, behind the rollouts on prompts with candidates, between two updates.
PHASES = ("_judge", "_right", "_short", "_judge_asked", "_update")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
  return {}


@pytest.mark.long
@pytest.mark.parametrize("phase", PHASES)
def test_killed_in_any_phase_and_resumed_it_is_the_run_that_never_stopped(
  phase, config, tmp_path, monkeypatch, whole, tmp_path_factory
):
  """With the teacher on the devices, which for the phase of compressions makes candidates short."""
  short = phase == "_short"
  c = config(**{"candidates.compressor": "teacher", "candidates.request": "{prompt}{response}x"} if short else {})
  if short not in whole:
    path = tmp_path_factory.mktemp("whole")
    whole[short] = train(c, path / "w"), read(path / "w", "train")
  whole_run, records = whole[short]
  assert not short or any(record["compression_tokens"] for record in records)
  run = open_run(c, tmp_path / "parts")
  method, calls = getattr(run.recipe, phase), []

  def die(*args):
    calls.append(run.step)
    if run.step == 2 and calls.count(2) > (phase == "_update"):
      raise KeyboardInterrupt
    return method(*args)

  monkeypatch.setattr(run.recipe, phase, die)
  with pytest.raises(KeyboardInterrupt):
    train_run(run)
  again = open_run(c, tmp_path / "parts")
  assert again.resumed_from == 2
  assert again.recipe.replay.entries
  train_run(again)
  assert [without_time(r) for r in read(tmp_path / "parts", "train")] == [without_time(r) for r in records]
  assert again.recipe.state_dict() == whole_run.recipe.state_dict()
  for a, b in zip(leaves(whole_run.state), leaves(again.state), strict=True):
    np.testing.assert_array_equal(a, b)
  assert any(record["teacher_tokens"] for record in records)
  assert any(record["prompts_bcq"] for record in records), "the teacher's random weights are right at times"


def test_other_prompts_begin_a_new_buffer(config, tmp_path):
  run = opened(config(), tmp_path / "w", Scripted())
  recipe = run.recipe
  recipe.replay.observe([1, 2], [0.0, 0.0], [0, 0])
  recipe._prompts_of_buffer = "others"
  questions, new = recipe._questions(run, 0)
  assert (len(questions), new, len(recipe.replay)) == (4, 4, 0)
  run.inputs.close()


@pytest.mark.parametrize("kind", ["hint", "prefix"])
def test_hints_and_prefixes_show_the_beginning_of_a_right_solution(kind, config, tmp_path, monkeypatch):
  solution = "1+1=2,2+2=4"  # of which 0.4 are 4 tokens
  monkeypatch.setitem(tasks.VERIFIERS, "chain", lambda response, *_, **__: response == solution or even(response))
  run = opened(config(steps=2, **{"zone.kinds": (kind,)}), tmp_path / "w", Scripted(solution))
  found = collected(run, monkeypatch)
  train_run(run)
  asked = [each for of_step, *_ in found for each in of_step.asked]
  assert asked
  for each in asked:
    prompt = run.inputs.train.prompts[each.question]
    text = run.inputs.tokenizer.decode(each.ids)
    assert text == (prompt + "1+1=" if kind == "prefix" else f"{prompt}>1+1==")
    assert each.prefix == ("1+1=" if kind == "prefix" else "")
  for of_step, *_ in found:
    if kind == "prefix" and of_step.of_asked:
      assert all(response.text.startswith("1+1=") for response in of_step.of_asked.responses), "verified as a whole"
  assert all(r["logprob_gap"] < 1e-4 for r in read(tmp_path / "w", "train"))


@pytest.mark.parametrize("short", ["3", ""])
def test_a_teacher_makes_candidates_short_or_all_of_a_prompt_are_cut(short, config, tmp_path, monkeypatch):
  c = config(steps=2, **{"candidates.compressor": "teacher", "candidates.request": "{prompt}{response}x"})
  run = opened(c, tmp_path / "w", teacher := Scripted(short=short))
  found = collected(run, monkeypatch)
  train_run(run)
  requests = [prompt for prompts, n, *_ in teacher.calls if n == 1 for prompt in prompts]
  assert requests
  assert all(request.endswith("x") for request in requests)
  for of_step, *_ in found:
    for each in of_step.asked:
      text = run.inputs.tokenizer.decode(each.ids)
      blocks = text.removeprefix(run.inputs.train.prompts[each.question])[1:-1].split(":")
      assert (set(blocks) == {"3"}) == bool(short)
  records = read(tmp_path / "w", "train")
  assert sum(r["compression_tokens"] for r in records) == len(requests)
  assert sum(r["teacher_tokens"] for r in records) == teacher.tokens - len(requests)


def test_a_teacher_elsewhere_is_told_the_words_of_a_question_with_their_suffix(config, tmp_path, monkeypatch):
  monkeypatch.setitem(tasks.VERIFIERS, "chain", lambda *_, **__: False)
  c = config(steps=1, **{"data.suffix": "#", "data.teacher_suffix": "x"})
  run = opened(c, tmp_path / "w", teacher := Scripted())
  train_run(run)
  ((prompts, *_),) = teacher.calls
  assert prompts
  assert all(prompt.endswith("x") and not prompt.endswith("#x") for prompt in prompts)
  chats = [[{"role": "system", "content": "S"}, {"role": "user", "content": "12"}]]
  written, tokens = run.recipe.teacher._ask(run, 9, chats, [0], 2, 5, 1.0)
  assert (teacher.calls[-1][0], written, tokens) == (["12"], [[RIGHT, RIGHT]], 2)


def test_a_function_of_ones_own_teaches(config, tmp_path):
  (tmp_path / "solver.py").write_text(
    f"def teacher(prompts, n, *, max_tokens, temperature, seed):\n  return [[{RIGHT!r}] * n for _ in prompts]\n"
  )
  train(config(**{"teacher": "", "zone.teacher_function": f"{tmp_path / 'solver.py'}:teacher"}), tmp_path / "w")
  records = read(tmp_path / "w", "train")
  asked = [record for record in records if record["teacher_tokens"]]
  assert sum(record["prompts_bcq"] for record in asked) > 0
  assert all(record["teacher_tokens"] % len(RIGHT) == 0 for record in asked), "a token is a character here"


@pytest.fixture
def server():
  server = Server()
  yield server
  server.close()


def at_endpoint(server, config, **changes):
  of_endpoint = {
    "zone.teacher_url": server.url,
    "zone.teacher_model": "m",
    "teacher": "",
    "zone.teacher_key_env": "A_KEY",
  }
  return config(
    **of_endpoint | {"candidates.compressor": "teacher", "candidates.request": "{prompt}{response}x"} | changes
  )


def without_requests(path) -> list[dict]:
  """The records of a run without what an endpoint was asked, which differs where answers are on disk."""
  records = [without_time(record) for record in read(path, "train")]
  return [{key: v for key, v in record.items() if not key.startswith("endpoint/")} for record in records]


@pytest.mark.long
def test_an_endpoint_teaches_is_paid_once_and_its_key_is_written_nowhere(config, server, tmp_path, monkeypatch, capfd):
  secret = "sk-very-secret-0123456789"
  monkeypatch.setenv("A_KEY", secret)
  server.behave = lambda handler, body: handler.send(said(body, RIGHT if body.get("n", 1) > 1 else "3"))
  c = at_endpoint(server, config)
  whole = train(c, tmp_path / "whole")
  asked = len(server.bodies)
  assert asked > 0
  assert any(r["prompts_bcq"] and r["compression_tokens"] for r in read(tmp_path / "whole", "train"))
  run = open_run(c, tmp_path / "parts")
  judge = run.recipe._judge_asked

  def die(*args):
    if run.step == 2:
      raise KeyboardInterrupt
    return judge(*args)

  monkeypatch.setattr(run.recipe, "_judge_asked", die)
  with pytest.raises(KeyboardInterrupt):
    train_run(run)
  again = train(c, tmp_path / "parts")
  assert len(server.bodies) == 2 * asked, "what was answered before the run was killed is on disk"
  assert without_requests(tmp_path / "parts") == without_requests(tmp_path / "whole")
  for a, b in zip(leaves(whole.state), leaves(again.state), strict=True):
    np.testing.assert_array_equal(a, b)
  assert all(headers["Authorization"] == f"Bearer {secret}" for headers in server.headers)
  written = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
  assert not any(secret.encode() in text for text in written)
  assert secret not in "".join(capfd.readouterr())


def said(body: dict, text: str) -> dict:
  choices = [{"index": i, "message": {"role": "assistant", "content": text}} for i in range(body.get("n", 1))]
  return {"choices": choices, "usage": {"prompt_tokens": 10, "completion_tokens": 5 * len(choices)}}


def test_a_run_goes_on_without_its_endpoint_or_stops_with_what_it_has(config, server, tmp_path, monkeypatch):
  """By key; a run that stopped goes on, with the same result, once the endpoint is there again."""
  monkeypatch.setenv("A_KEY", "a")
  fails = {"after": 1}

  def behave(handler, body):
    if handler.number >= fails["after"]:
      handler.send({"error": {"message": "no"}}, 500)
    else:
      handler.send(said(body, RIGHT))

  server.behave = behave
  changes = {"zone.teacher_retries": 0, "candidates.compressor": "truncate", "zone.teacher_parallel": 1}
  train(at_endpoint(server, config, **changes | {"zone.teacher_on_failure": "continue"}), tmp_path / "on")
  records = read(tmp_path / "on", "train")
  assert [r["step"] for r in records] == [1, 2, 3, 4]
  assert records[-1]["endpoint/failed"] > 0
  assert records[-1]["teacher_right"] == 0.0
  assert any(r["prompts_ncq"] for r in records[1:]), "what needs no teacher goes on"
  fails["after"] = len(server.bodies) + 3
  c = at_endpoint(server, config, **changes)
  with pytest.raises(InputError, match=r"The endpoint .* what it has answered is kept"):
    train(c, tmp_path / "stopped")
  assert 0 < len(read(tmp_path / "stopped", "train")) < 4
  fails["after"] = 10**9
  train(c, tmp_path / "stopped")
  train(c, tmp_path / "whole")
  assert without_requests(tmp_path / "stopped") == without_requests(tmp_path / "whole")


@pytest.mark.long
def test_controls(config, tmp_path, monkeypatch):
  """Two wrong candidates, the right one first, graduation at random, and no teacher where none is needed."""
  run = opened(
    config(steps=2, **{"candidates.wrong_pair": True, "zone.graduation": "random"}), tmp_path / "w", Scripted()
  )
  found, observe, lots = collected(run, monkeypatch), run.recipe.replay.observe, []

  def observed(questions, rates, solved, rng):
    lots.append(rng)
    return observe(questions, rates, solved, rng)

  monkeypatch.setattr(run.recipe.replay, "observe", observed)
  train_run(run)
  assert len(lots) == 2
  assert all(isinstance(rng, np.random.Generator) for rng in lots), "who leaves is drawn"
  pairs = [each for of_step, *_ in found for each in of_step.asked if each.kind == "bcq"]
  assert pairs
  assert all(each.right == "" and len(each.wrong) == 2 for each in pairs)
  run = opened(config(steps=2, **{"candidates.shuffle": False}), tmp_path / "first", Scripted())
  found = collected(run, monkeypatch)
  train_run(run)
  for each in (each for of_step, *_ in found for each in of_step.asked if each.kind == "bcq"):
    text = run.inputs.tokenizer.decode(each.ids)
    first = text.removeprefix(run.inputs.train.prompts[each.question])[1:-1].split(":")[0]
    assert RIGHT.endswith(first)
  alone = {"teacher": "", "zone.kinds": ("ncq",)}
  train(config(steps=1, **alone), tmp_path / "ncq")
  (record,) = read(tmp_path / "ncq", "train")
  assert record["teacher_tokens"] == 0 < record["prompts_ncq"]
  train(config(steps=2, teacher="", **{"zone.augment": 0.0}), tmp_path / "none")
  assert all("prompts_bcq" not in r and r["reformulated_tokens"] == 0 for r in read(tmp_path / "none", "train"))


def test_a_step_without_hard_questions_asks_nothing_anew(config, tmp_path, monkeypatch):
  monkeypatch.setitem(tasks.VERIFIERS, "chain", lambda *_, **__: True)
  run = opened(config(steps=2), tmp_path / "w", teacher := Scripted())
  train_run(run)
  for record in read(tmp_path / "w", "train"):
    assert (record["hard"], record["prompts_bcq"], record["buffer"], record["empty_places"]) == (0, 0, 0, 4)
  assert teacher.calls == []
  assert int(run.state.empty) == 4


def test_its_student_is_evaluated_without_a_teacher(config, tmp_path):
  c = config(steps=1)
  run = opened(c, tmp_path / "w", Scripted())
  train_run(run)
  recipe = base.make(inputs.load_student(c, run.inputs.mesh))
  models, step = base.saved_models(recipe, run.workdir.root)
  assert step == 1
  jax.tree.map(np.testing.assert_array_equal, models["student"], run.state.params)


@pytest.mark.long
@pytest.mark.parametrize("rank", [0, 2], ids=["all weights", "adapter"])
def test_the_student_before_training_can_be_the_teacher(rank, config, tmp_path):
  c = config(steps=2, teacher="initial", **{"lora.rank": rank, "log.rollouts": 2})
  run = train(c, tmp_path / "w")
  assert (run.frozen.speaker is None) == bool(rank), "an adapter's base is read once"
  records = read(tmp_path / "w", "train")
  assert any(record["teacher_tokens"] for record in records)
  assert all(record["logprob_gap"] < 1e-4 for record in records)
  assert len((tmp_path / "w" / "rollouts.jsonl").read_text().splitlines()) == 2 * 2


@pytest.mark.long
def test_a_plan_lowers_a_step_of_the_new_prompts(config):
  recipe = base.make(specs.from_architectures(config(), stop_ids=(1,)))
  lowered = dict(recipe.lower(recipe.planned_shape(16, 12)))
  assert set(lowered) == {"update", "rollout"}
  assert len(recipe.roofline_costs("rollout", 4, N, 16, 12)) > 2
  assert recipe.roofline_costs("update", 4, N, 16, 12)[0].flops > 0


def test_prompts_with_candidates_can_be_looked_at(config, tmp_path):
  run = opened(config(), tmp_path / "w")
  shown = dict(run.recipe.preview(run.inputs, 0))
  assert [what.split(" in a ")[1][:3] for what in shown] == ["bcq", "ncq"]
  run.inputs.close()


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    (
      {"mixture.reward": 0.0, "surrogate.kind": "importance", "mixture.divergence": 1.0},
      "config.mixture.divergence is 1.0",
    ),
    ({"rollout.ahead": True}, "config.rollout.ahead is True"),
    ({"horizon.kind": "truncated", "horizon.ratio": 0.5}, "config.horizon.kind is 'truncated'"),
    ({"teacher": ""}, "config.teacher is '', and bcq needs one that writes"),
    (
      {"teacher": "", "zone.kinds": ("ncq",), "candidates.compressor": "teacher"},
      "config.candidates.compressor='teacher' needs",
    ),
    (
      {"zone.teacher_url": "http://127.0.0.1:9/v1", "zone.teacher_model": "m"},
      "config.zone.teacher_url names another one",
    ),
    ({"zone.teacher_url": "here", "zone.teacher_model": "m", "teacher": ""}, "it has to begin with http://"),
    ({"zone.teacher_url": "http://127.0.0.1:9/v1", "teacher": ""}, "An endpoint needs the name of its model"),
    ({"zone.teacher_function": "opd_jax.tasks.subsets:solver"}, "config.zone.teacher_function names another one"),
    (
      {"zone.teacher_function": "opd_jax.tasks.subsets:nothing", "teacher": ""},
      "The teacher 'opd_jax.tasks.subsets:nothing'",
    ),
    (
      {
        "zone.teacher_function": "a:b",
        "zone.teacher_url": "http://127.0.0.1:9/v1",
        "zone.teacher_model": "m",
        "teacher": "",
      },
      "The teacher 'a:b'",
    ),
    (
      {
        "zone.teacher_function": "opd_jax.tasks.subsets:solver",
        "zone.teacher_url": "http://127.0.0.1:9/v1",
        "zone.teacher_model": "m",
        "teacher": "",
      },
      "name two teachers",
    ),
    ({"candidates.bcq": "{prompt}"}, r"config.candidates.bcq has no \{candidates\}"),
    ({"candidates.max_prompt": 501}, "config.candidates.max_prompt is 501"),
    ({"zone.teacher_tokens": 512}, "The teacher is to write 512 tokens"),
    ({"surrogate.kind": "dppo", "surrogate.divergence": "topk_tv"}, "config.surrogate.divergence is 'topk_tv'"),
  ],
)
def test_configs_that_cannot_be_meant(changes, message, config, tmp_path):
  with pytest.raises(InputError, match=message):
    open_run(config(**changes), tmp_path / "w")
